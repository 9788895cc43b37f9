"""The page of a run: one file, alarms first, text as text; looked at by a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from miles_lite.cli import main
from miles_lite.report.page import differences, render
from miles_lite.report.record import read_record
from miles_lite.report.rollout_table import FOLDER
from tests.report.runs import FAULTS, fail, write_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "</table><script>alert('x')</script> \x00\x1b[31m & <img src=x onerror=alert(1)> ␀ \u202e"


class Tags(HTMLParser):
    """Which elements a page has, and with which attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(folder: Path, **run: object) -> str:
    return render([read_record(write_run(folder, **{"seed": 1, **run}))])  # type: ignore[arg-type]


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    tags = Tags(page).found
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in tags)
    outside = {name: value for _, attributes in tags for name, value in attributes.items() if name in ("href", "src")}
    assert outside == {} or all(str(value).startswith("#") for value in outside.values())
    assert "url(http" not in page
    assert len(page) < 5_000_000
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used <= set(re.findall(r"(--\w+):", page)), "a colour that no theme has"


@pytest.mark.parametrize("fault", list(FAULTS)[::5])
def test_the_fault_comes_first(fault: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, fault=FAULTS[fault])
    assert 0 < page.index('class="alarm"') < page.index("Summary") < page.index("<svg")


def test_text_of_failures_stays_text(tmp_path: Path) -> None:
    def nasty(step: int, metrics: dict[str, float], rollouts: list[dict[str, object]]) -> None:
        fail(rollouts[0], "agent", NASTY)

    page = page_of(tmp_path, fault=nasty)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "onerror=alert(1)&gt;" in page
    assert Tags(page).found.count(("img", {"src": "x", "onerror": "alert(1)"})) == 0


def test_a_run_that_was_killed_reads_to_its_last_step(tmp_path: Path) -> None:
    write_run(tmp_path, seed=3, ended=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"rollout/step": 40, "rollout/rew')
    (tmp_path / FOLDER / ".000040.parquet.partial").write_bytes(b"PAR1")
    page = render([read_record(tmp_path)])
    assert "no summary: it runs, or was stopped" in page
    assert "<td>39</td>" in page


def test_two_runs_stand_side_by_side_with_what_differs(tmp_path: Path) -> None:
    records = [read_record(write_run(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "other"))]
    assert differences(records) == [("seed", ["0", "1"])]
    page = render(records)
    assert page.index("What differs") < page.index(">one</h1>") < page.index(">other</h1>")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda run: (run / FOLDER / "000003.parquet").write_bytes(b"PAR1 nothing"), "000003.parquet cannot be read"),
    ],
)
def test_a_damaged_file_is_named(spoil: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(write_run(tmp_path, seed=0))  # type: ignore[operator]
    assert main(["report", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_run_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_the_command_writes_the_page_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", seed=0)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_complaint(width: int, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(page_of(tmp_path / "run", fault=FAULTS["failures"]))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/at"]
    flags += [f"--window-size={width},2000", f"--screenshot={picture}", page.as_uri()]
    said = subprocess.run([str(BROWSER), *flags], capture_output=True, text=True, timeout=120, check=True).stderr
    assert "CONSOLE" not in said
    assert picture.stat().st_size > 20_000
