"""The dash against what a folder and a client can throw at it: nothing is an error of its own, all is shown as text."""

from __future__ import annotations

import asyncio
import html
import json
import random
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from pyarrow import types

from miles_lite.cli import main
from miles_lite.errors import UserError
from miles_lite.job.claim import in_use
from miles_lite.job.events import Events
from miles_lite.report import fleet_rows, json_lines
from miles_lite.report.dashboard import change_events
from miles_lite.report.event_rows import Kind
from miles_lite.report.record import read_record
from miles_lite.report.rollout_table import SCHEMA, trajectory_path
from miles_lite.report.runs import Runs
from tests.report.helpers import NASTY, Elements, a_run, keep
from tests.report.runs import Row, write_run
from tests.report.test_dash import PICTURE, client, served

WORDS = [field.name for field in SCHEMA if types.is_string(field.type)]
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def nasty(folder: Path) -> Path:
    """A run of which every word is one that would steer a page or a terminal."""

    def said(step: int, metrics: Row, rollouts: list[Row]) -> None:
        for row in rollouts:
            row.update(dict.fromkeys(WORDS, NASTY))
        metrics[f"eval/{NASTY}"], metrics[f"eval/{NASTY}-none_reward_ratio"] = 0.5, 0.0

    run = write_run(folder, seed=1, steps=3, fault=said)
    (run / "config.json").write_text(json.dumps({"model": {"hf_checkpoint": NASTY, NASTY: NASTY}}))
    (run / "summary.json").write_text(json.dumps({"ended": NASTY}))
    with Events(run) as events:
        for kind in (Kind.START, Kind.ALARM, Kind.SERVERS):
            events.record(kind, NASTY, step=1, what=NASTY)
        events.record(Kind.PAGE, "javascript:alert(1)", what="wandb")
        events.record(Kind.PAGE, 'https://wandb.example/run?a="><img src=x>&b', what=NASTY)
    json_lines.append(run / "events.jsonl", [{"kind": NASTY, "said": NASTY, "time": 1.0}])
    json_lines.append(run / fleet_rows.FILE, [{"time": 1.7e9, "engine": NASTY, "kv_use": NASTY}])
    for row in read_record(run).rollouts[-4:]:
        keep(run, row, [40, 41, 42], said=NASTY, turns=3)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small run, which nobody changes."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "run", seed=1, steps=1)
    return folder


def test_every_word_of_a_run_is_text(tmp_path: Path) -> None:
    nasty(tmp_path / "run")
    dash, seen, left = client(tmp_path), set[str](), ["/"]
    while left and len(seen) < 60:
        seen.add(path := left.pop(0))
        answer = dash.get(path)
        assert answer.status_code == 200, path
        assert {"b", "iframe"}.isdisjoint(Elements(answer.text).names)
        assert answer.text.count("<img") == len(PICTURE.findall(answer.text))
        assert answer.text.count("<script") == answer.text.count('<script nonce="')
        assert STEERING.search(answer.text) is None, path
        links = [html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', answer.text)]
        assert not any(link.lower().startswith("javascript:") for link in links)
        inside = [urlsplit(link)._replace(fragment="").geturl() for link in links if link.startswith("/")]
        left += [link for link in dict.fromkeys(inside) if link not in seen and link not in left]
    assert any("/diff" in path or "/rollouts/" in path for path in seen)
    assert "/api" in seen
    (found,) = dash.get("/api/runs").json()
    assert list(found["pages"].values()) == ['https://wandb.example/run?a="><img src=x>&b']


def test_where_else_a_run_is_shown_can_be_gone_to(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=1, steps=2)
    with Events(run) as events:
        events.record(Kind.PAGE, "http://127.0.0.1:8265/#/actors", what="Ray's actors")
        events.record(Kind.PAGE, "https://wandb.example/old", what="wandb")
        events.record(Kind.PAGE, "https://wandb.example/new", what="wandb")
    shown = dict(
        re.findall(r'<a href="(http[^"]*)" rel="noreferrer">([^<]*)</a>', client(tmp_path).get("/runs/run").text)
    )
    assert shown == {"http://127.0.0.1:8265/#/actors": "Ray&#39;s actors", "https://wandb.example/new": "wandb"}


@pytest.mark.parametrize("name", ["..", ".", "\0", "../run", "run/..", "/etc", "x" * 5000, ""])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, steps=1)
    write_run(tmp_path / "runs" / "run", seed=1, steps=1)
    with pytest.raises(UserError, match="no run"):
        Runs(tmp_path / "runs", running=in_use).path(name)
    assert client(tmp_path / "runs").get("/api/runs/%2e%2e").status_code == 404


HUGE = ("-1", "99999999999999999999999999", "9" * 5000, "1e3", "x", "\x00", "' or 1=1 --")


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("asked", ["step", "group", "offset", "limit"])
def test_a_number_that_is_none_is_refused_in_words(asked: str, value: str, plain: Path) -> None:
    dash = client(plain)
    answer = dash.get("/api/runs/run/rollouts", params={asked: value})
    assert answer.status_code == 422
    assert asked in answer.json()["error"]
    if asked != "limit":
        answer = dash.get("/runs/run", params={asked: value})
        assert answer.status_code == 404
        assert "the form takes numbers" in answer.text


@pytest.mark.parametrize("asked", ["outcome", "status", "where", "text", "least", "most"])
@pytest.mark.parametrize("value", ["' or 1=1 --", "(((((", "%", "\\", "\x00", "*", "nan", "-inf", "x" * 50_000])
def test_a_word_is_only_ever_a_word(asked: str, value: str, plain: Path) -> None:
    answer = client(plain).get("/api/runs/run/rollouts", params={asked: value})
    if answer.status_code == 200:
        assert answer.json() == []
    else:
        assert answer.status_code == 422
        assert asked in answer.json()["error"]


@pytest.mark.parametrize("step", ["-1", "9" * 30, "9" * 5000, "x", "1.5"])
def test_an_address_of_no_rollout_is_refused_in_words(step: str, plain: Path) -> None:
    for path in (f"steps/{step}/rollouts/0", f"steps/0/rollouts/{step}", f"steps/0/diff?one=0&other={step}"):
        for answer in (client(plain).get(f"/{where}runs/run/{path}") for where in ("", "api/")):
            assert answer.status_code in (404, 422)
            assert "<h1>This cannot be shown</h1>" in answer.text or answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "", 405), ("DELETE", "runs/x", 405), ("GET", "x", 404)]
)
def test_what_is_never_there_is_said_like_all_else(method: str, path: str, status: int, tmp_path: Path) -> None:
    dash = client(tmp_path)
    page, told = dash.request(method, f"/{path}"), dash.request(method, f"/api/{path}".rstrip("/") or "/api")
    assert page.status_code == status
    assert "<h1>This cannot be shown</h1>" in page.text
    assert told.status_code in (404, 405)


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return (
        [at, *(place for name, value in inner for place in _places(value, (*at, name)))]
        if at
        else [place for name, value in inner for place in _places(value, (name,))]
    )


ODD: tuple[Any, ...] = (None, -1, 1e400, "x", [], {}, [None], True, 10**18, -(10**18))


def test_a_trajectory_with_any_value_in_any_place_is_shown_or_named(tiny_model: Path, tmp_path: Path) -> None:
    row, other = read_record(a_run(tmp_path / "run", tiny_model)).rollouts[-2:]
    for each in (row, other):
        keep(tmp_path / "run", each, [40, 41], turns=2)
    path = trajectory_path(tmp_path / "run", row["step"], row["rollout"])
    whole = path.read_bytes()
    dash, rng = client(tmp_path), random.Random(0)
    at = f"runs/run/steps/3/rollouts/{row['rollout']}"
    diff = f"runs/run/steps/3/diff?one={row['rollout']}&other={other['rollout']}"
    places = _places(orjson.loads(whole))
    for place in places:
        data = orjson.loads(whole)
        inner = data
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = rng.choice(ODD)
        path.write_bytes(json.dumps(data).encode())
        for asked in (f"/{at}", f"/{diff}", f"/api/{diff}", f"/api/{at}", "/runs/run?text=hello"):
            assert dash.get(asked).status_code in (200, 404), (place, inner[place[-1]], asked)


def test_a_run_may_go_while_a_page_follows_it_and_another_take_its_place(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=1, steps=2)
    with served(tmp_path) as address:
        at = urlsplit(address)
        with socket.create_connection((str(at.hostname), at.port or 0), timeout=30) as asking:
            asking.sendall(b"GET /api/changes?since=before HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            heard = asking.makefile("rb")
            assert any(line.startswith(b"data: ") for line in iter(heard.readline, b"")), "since its page was made"
            shutil.rmtree(run)
            assert any(line.startswith(b"data: ") for line in iter(heard.readline, b""))
            write_run(run, seed=2, steps=3)
            assert any(line.startswith(b"data: ") for line in iter(heard.readline, b""))


def test_a_host_is_one_of_this_machine(tmp_path: Path) -> None:
    dash = client(tmp_path)
    asked = {"127.0.0.2:8700": 200, "LOCALHOST": 200, "[::1]": 200, "[::1": 400, "": 400, "127.0.0.1.evil.example": 400}
    assert {host: dash.get("/api/runs", headers={"Host": host}).status_code for host in asked} == asked


def test_two_that_ask_for_a_token_do_not_take_each_others_place_in_a_browser(tmp_path: Path) -> None:
    one, other = client(tmp_path, token="1" * 20), client(tmp_path, token="2" * 20)
    one.get("/?token=" + "1" * 20)
    other.cookies = one.cookies
    other.get("/?token=" + "2" * 20)
    assert [dash.get("/api/runs").status_code for dash in (one, other)] == [200, 200]


def test_a_tokenizer_that_cannot_be_read_costs_the_spelling_of_tokens_alone(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    row = read_record(a_run(tmp_path / "runs" / "run", tmp_path / "model")).rollouts[-1]
    keep(tmp_path / "runs" / "run", row, [40, 41], said="forty")
    assert "forty" in client(tmp_path / "runs").get(f"/runs/run/steps/3/rollouts/{row['rollout']}").text


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dash", str(tmp_path / "none")]) == 2
    assert f"error: {tmp_path}/none: no such folder; give that of --run-dir" in capsys.readouterr().err


class Connected:
    """A client that stays."""

    async def is_disconnected(self) -> bool:
        return False


async def test_a_disk_that_takes_its_time_keeps_nobody_else_waiting() -> None:
    gate = threading.Event()
    heard = change_events(lambda: f"in time: {gate.wait(20)}", "before", Connected(), lambda: False)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0.01)
    gate.set()
    assert await first == "data: in time: True\n\n"
    await heard.aclose()
