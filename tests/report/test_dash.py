"""The dash: runs, steps, groups, rollouts and trajectories over HTTP, as pages and as JSON; text as text."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient

from miles_lite.cli import main
from miles_lite.job.claim import claimed, in_use
from miles_lite.job.events import Events
from miles_lite.process.json_types import JsonMapping
from miles_lite.report import event_rows, json_lines, rollout_table
from miles_lite.report.dashboard import app_of
from miles_lite.report.event_rows import Kind
from miles_lite.report.record import read_record
from miles_lite.report.runs import Runs
from tests.report.helpers import NASTY, Elements, a_run, keep
from tests.report.runs import write_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def client(folder: Path, token: str | None = None) -> TestClient:
    return TestClient(app_of(Runs(folder, running=in_use), token=token), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of one of which the last rollouts were kept; nothing is written there any more."""
    made = tmp_path_factory.mktemp("runs")
    write_run(made / "plain", seed=1, steps=3)
    run = a_run(made / NAME, tiny_model)
    for row, ids in zip(read_record(run).rollouts[-3:], ([40, 50], [40, 41, 42], [40, 41, 42]), strict=True):
        keep(run, row, ids, said=NASTY, turns=2)
    return made


NAME = "one & <b>other<b>"
PICTURE = re.compile(r'<img loading="lazy" alt="" src="(/runs/[^"]*/pictures/[^"]*)">')
PATH = "one%20%26%20%3Cb%3Eother%3Cb%3E"


def test_every_run_says_how_it_stands(folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "third", seed=3, steps=2)
    with claimed({"--run-dir": run}), Events(run) as events:
        events.write()
        events.record(Kind.ALARM, "Rollouts fail: all", step=1, what="failures")
        events.record(Kind.ALARM, "The gradient spikes: 60", step=1, what="gradient_spike")
        events.record(Kind.CALM, "not seen", step=1, what="failures")
        (one,) = client(tmp_path).get("/api/runs").json()
    assert (one["name"], one["state"], one["step"]) == ("third", "running", 1)
    assert one["alarms"] == ["The gradient spikes: 60"]
    (one,) = client(tmp_path).get("/api/runs").json()
    assert one["state"] == "ended: well"
    assert {each["name"] for each in client(folder).get("/api/runs").json()} == {"plain", NAME}
    assert [each["name"] for each in client(run).get("/api/runs").json()] == ["third"]


def test_rollouts_are_filtered_and_the_newest_come_first(folder: Path) -> None:
    rows = read_record(folder / NAME).rollouts
    get = client(folder).get

    def found(**asked: float | str) -> list[int]:
        given: dict[str, float | str] = {"limit": 1000, **asked}
        answer = get(f"/api/runs/{PATH}/rollouts", params=given)
        return [row["rollout"] for row in answer.json()]

    assert found() == [row["rollout"] for step in (3, 2, 1, 0) for row in rows if row["step"] == step]
    assert found(step=1) == [row["rollout"] for row in rows if row["step"] == 1]
    assert sorted(found(where="tool")) == [row["rollout"] for row in rows if row["where"] == "tool"]
    assert sorted(found(least=0.5)) == [row["rollout"] for row in rows if (row["reward"] or 0) >= 0.5]
    assert found(step=2, group=16) == [row["rollout"] for row in rows if row["group"] == 16]
    assert found(text="<script>alert('x')</script> \x00") == [row["rollout"] for row in rows[-3:]]
    assert found(text="no such text") == []
    assert found(limit=5, offset=30) == found()[30:35]


def test_a_rollout_is_there_whole(folder: Path) -> None:
    get, row = client(folder).get, read_record(folder / NAME).rollouts[-1]
    whole = get(f"/api/runs/{PATH}/steps/3/rollouts/{row['rollout']}").json()
    assert whole["row"] == row
    assert whole["trajectory"]["steps"][-1]["output_ids"] == [40, 41, 42]
    assert get(f"/api/runs/{PATH}/steps/0/rollouts/0").json()["trajectory"] is None
    for gone in (f"/api/runs/{PATH}/steps/0/rollouts/99999", f"/api/runs/{PATH}/steps/77/rollouts/0", "/api/runs/none"):
        answer = get(gone)
        assert answer.status_code == 404
        assert "no" in answer.json()["error"]


def test_two_rollouts_of_a_group_stand_side_by_side(tiny_model: Path, tmp_path: Path) -> None:
    rows = read_record(a_run(tmp_path / "run", tiny_model)).rollouts[-4:]
    for row, ids in zip(rows, ([40, 41, 42, 43], [40, 50, 42], [40, 50, 42]), strict=False):
        keep(tmp_path / "run", row, ids, said=NASTY, turns=2)
    one, other, same, gone = (row["rollout"] for row in rows)
    dash, at = client(tmp_path), "runs/run/steps/3/diff"
    found = dash.get(f"/api/{at}?one={one}&other={other}").json()
    assert found["same"] == 3, "what they were told, and the first token"
    assert [part["ids"] for part in found["one"]["parts"]] == [[40, 41, 42, 43], [1, 2], [40, 41, 42, 43]]
    assert found["one"]["parts"][0]["only"] == [[1, 2], [3, 4]]
    assert found["other"]["parts"][0]["only"] == [[1, 2]]
    assert found["other"]["row"]["rollout"] == other
    group = dash.get(f"/runs/run?step=3&group={rows[0]['group']}").text
    assert 'action="/runs/run/steps/3/diff"' in group
    assert f'<option value="{gone}">{gone}: reward 1.0, not kept</option>' in group
    assert 'action="/runs/run/steps/3/diff"' not in dash.get("/runs/run?step=3").text
    page = dash.get(f"/{at}?one={one}&other={other}").text
    assert "The first 3 tokens are the same" in page
    assert page.count(' o" title=') == 2 * 3
    assert {"script", "img", "iframe"}.isdisjoint(Elements(page).names)
    assert "both are the same" in dash.get(f"/{at}?one={other}&other={same}").text
    assert f"Of rollout {gone} no trajectory was kept" in dash.get(f"/{at}?one={gone}&other={same}").text
    assert "was not kept" in dash.get(f"/api/{at}?one={gone}&other={same}").json()["error"]
    assert dash.get(f"/{at}?one=77777&other={same}").status_code == 404
    (tmp_path / "run" / "config.json").write_text("{}")
    assert dash.get(f"/{at}?one={one}&other={other}").text.count("&lt;script&gt;alert(") == 6, "no tokenizer: text"


def test_metrics_are_there_by_step(folder: Path) -> None:
    one = client(folder).get("/api/runs/plain").json()
    assert list(one["metrics"]["rollout/reward_unfiltered"]) == ["0", "1", "2"]
    assert one["options"]["seed"] == 1


def test_the_api_describes_itself(folder: Path) -> None:
    told = client(folder).get("/openapi.json").json()["paths"]
    assert "/api/runs/{name}/rollouts" in told
    assert all(one["get"]["description"] for one in told.values())


@pytest.mark.parametrize(
    "path", ["", f"runs/{PATH}", f"runs/{PATH}?where=tool&least=", f"runs/{PATH}/steps/3/rollouts/127", "runs/plain"]
)
def test_pages_show_text_as_text_and_lead_to_pages(path: str, folder: Path) -> None:
    dash = client(folder)
    answer = dash.get(f"/{path}")
    assert answer.status_code == 200
    assert {"b", "iframe"}.isdisjoint(Elements(answer.text).names)
    assert answer.text.count("<img") == len(PICTURE.findall(answer.text)), "the dash's own alone"
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", answer.text) is None
    nonces = re.findall(r'<script nonce="([\w-]+)"', answer.text)
    assert answer.text.count("<script") == len(nonces) <= 1
    assert all(f"'nonce-{nonce}'" in answer.headers["content-security-policy"] for nonce in nonces)
    links = {link.replace("&amp;", "&") for link in re.findall(r'href="(/[^"]*)"', answer.text)}
    assert links
    assert {dash.get(link).status_code for link in sorted(links)[:8]} <= {200}


def test_a_picture_is_drawn_when_it_is_asked_for(folder: Path) -> None:
    dash = client(folder)
    shown = [html.unescape(src) for src in PICTURE.findall(dash.get(f"/runs/{PATH}").text)]
    assert len(shown) > 4
    for src in shown:
        answer = dash.get(src)
        assert answer.headers["content-type"].startswith("image/svg+xml")
        assert "max-age" in answer.headers["cache-control"]
        drawn = ElementTree.fromstring(answer.text)
        assert drawn.tag.endswith("svg")
        assert set(re.findall(r"var\((--\w+)\)", answer.text)) <= set(re.findall(r"(--\w+):", answer.text))
    assert dash.get(shown[0].partition("?")[0]).headers["cache-control"] == "no-store"
    assert dash.get(f"/runs/{PATH}/pictures/none").status_code == 404


def test_a_page_is_made_without_the_libraries_that_only_pictures_need(folder: Path) -> None:
    asks = (
        "import sys; from tests.report.test_dash import *; from pathlib import Path; "
        "assert client(Path(sys.argv[1])).get('/runs/plain').status_code == 200; "
        "assert client(Path(sys.argv[1])).get('/runs/plain?least=1').status_code == 200; "
        "print({'matplotlib', 'pandas'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", asks, str(folder)], capture_output=True, text=True, timeout=120)
    assert said.stdout == "set()\n", said.stderr


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("runs/plain?step=x", 404, "takes numbers"),
        ("runs/plain/steps/1/diff?one=1&other=<b>", 422, "other: Input should be a valid integer"),
        ("runs/<b>none", 404, "no run &lt;b&gt;none in "),
        ("runs/plain/steps/77/rollouts/0", 404, "has no rollout 0 in step 77"),
    ],
)
def test_what_there_is_not_is_said_in_a_page(path: str, status: int, said: str, folder: Path) -> None:
    answer = client(folder).get(f"/{path}")
    assert answer.status_code == status
    assert said in answer.text
    assert {"b", "img"}.isdisjoint(Elements(answer.text).names)
    told = client(folder).get(f"/api/{path.replace('?step=x', '/rollouts?step=x')}")
    assert told.status_code in (404, 422)
    assert told.json()["error"]


@pytest.mark.parametrize("name", ["x\udcff", "q?x#y", "new\nline", "'\"><img src=x>", "a%2Fb", "...", "ü\u202e"])
def test_a_folder_of_any_name_is_shown(name: str, tmp_path: Path) -> None:
    shutil.move(write_run(tmp_path / "run", seed=1, steps=2), tmp_path / "runs" / name)
    dash = client(tmp_path / "runs")
    (one,) = dash.get("/api/runs").json()
    assert one["step"] == 1
    page = dash.get("/").text
    assert "img" not in Elements(page).names
    (link,) = re.findall(r'href="(/runs/[^"]*)"', page)
    if "%25" not in link:  # which the client here decodes twice
        page = dash.get(html.unescape(link)).text
        assert dash.get(html.unescape(PICTURE.findall(page)[0])).status_code == 200
        assert dash.get(f"{html.unescape(link)}?least=0").status_code == 200


def test_a_damaged_run_hides_no_other_and_says_what_is_wrong(tmp_path: Path) -> None:
    for name in ("fine", "damaged"):
        write_run(tmp_path / name, seed=1, steps=2)
    (tmp_path / "damaged" / "events.jsonl").mkdir()
    rollout_table.step_path(tmp_path / "fine", 1).write_bytes(b"PAR1 nothing")
    dash = client(tmp_path)
    states = {one["name"]: one["state"] for one in dash.get("/api/runs").json()}
    assert states["fine"] == "ended without a word"
    assert "events.jsonl cannot be read" in states["damaged"]
    assert "events.jsonl cannot be read" in dash.get("/").text
    for path in ("runs/fine", "runs/fine/steps/1/rollouts/0", "runs/damaged"):
        answer = dash.get(f"/{path}")
        assert answer.status_code == 404
        assert "cannot be read" in answer.text


def test_a_run_that_is_removed_is_gone(tmp_path: Path) -> None:
    run, dash = write_run(tmp_path / "run", seed=1, steps=2), client(tmp_path)
    assert dash.get("/runs/run").status_code == 200
    shutil.rmtree(run)
    assert dash.get("/api/runs").json() == []
    for path in ("runs/run", "runs/run/pictures/Reward", "api/runs/run", "api/runs/run/rollouts"):
        assert dash.get(f"/{path}").status_code == 404


def test_to_ask_for_many_runs_reads_each_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write_run(tmp_path / f"run{number}", seed=number, steps=1)
    read: list[Path] = []

    def reading(path: Path) -> list[JsonMapping]:
        read.append(path)
        return wanted(path)

    wanted = event_rows.read
    monkeypatch.setattr(event_rows, "read", reading)
    dash = client(tmp_path)
    for _ in range(3):
        assert len(dash.get("/api/runs").json()) == 30
    assert len(read) == 30
    json_lines.append(tmp_path / "run7" / "metrics.jsonl", [{"rollout/step": 1, "rollout/reward_unfiltered": 0.5}])
    assert {one["step"] for one in dash.get("/api/runs").json()} == {0, 1}


@pytest.mark.parametrize("flags", [["--bind-host", "192.0.2.77"], ["--bind-host", "none.invalid"], []])
def test_where_nobody_can_listen_is_said(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["dash", str(tmp_path), "--port", str(port), *flags]) == 2
    assert f"--port {port} (0: any that is free): nobody can listen there" in capsys.readouterr().err


def test_a_token_is_asked_for_where_there_is_one(folder: Path) -> None:
    dash = client(folder, token="s3cret")
    assert dash.get("/api/runs").status_code == 401
    assert dash.get("/?token=wrong").status_code == 401
    assert dash.get("/?token=s3cret").status_code == 200
    assert dash.get("/api/runs").status_code == 200, "the cookie"


def test_it_serves_any_loopback(folder: Path) -> None:
    for host in ("127.0.0.1:80", "localhost", "[::1]:8700"):
        assert client(folder).get("/api/runs", headers={"Host": host}).status_code == 200


def test_another_sites_name_that_leads_here_reads_nothing(folder: Path) -> None:
    assert client(folder).get("/api/runs", headers={"Host": "evil.example"}).status_code == 400


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a real `miles-lite dash`, which ends with Ctrl-C and says no more."""
    command = [sys.executable, "-m", "miles_lite", "dash", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        os.kill(process.pid, signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) in ((0, ""), (130, "interrupted\n"))


def test_a_running_run_is_followed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=1, steps=2)
    with served(tmp_path) as address:
        assert json.loads(urllib.request.urlopen(f"{address}api/runs", timeout=30).read())[0]["step"] == 1
        with urllib.request.urlopen(f"{address}api/runs/run/changes", timeout=30) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.readline() == b": nothing new\n"
            time.sleep(0.01)
            row = {"rollout/step": 2, "time": time.time(), "rollout/reward_unfiltered": 0.5}
            json_lines.append(run / "metrics.jsonl", [row])
            lines = iter(stream.readline, b"")
            assert any(line.startswith(b"data: ") for line in lines)
        assert json.loads(urllib.request.urlopen(f"{address}api/runs", timeout=30).read())[0]["step"] == 2


def test_it_ends_while_a_page_follows_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", seed=1, steps=2)
    with contextlib.ExitStack() as opened, served(tmp_path) as address:
        stream = opened.enter_context(urllib.request.urlopen(f"{address}api/runs/run/changes", timeout=30))
        assert stream.readline() == b": nothing new\n"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_it_without_complaint(folder: Path, tmp_path: Path) -> None:
    with served(folder) as address:
        for name, path in {"runs": "", "run": f"runs/{PATH}", "rollout": f"runs/{PATH}/steps/3/rollouts/127"}.items():
            picture = tmp_path / f"{name}.png"
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--timeout=3000"]
            flags += [f"--user-data-dir={tmp_path}/at", "--window-size=1280,2000", f"--screenshot={picture}"]
            said = subprocess.run([str(BROWSER), *flags, address + path], capture_output=True, text=True, timeout=120)
            assert "CONSOLE" not in said.stderr, said.stderr
            assert picture.stat().st_size > 8_000
