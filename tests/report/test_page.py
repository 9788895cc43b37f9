"""The page of a run: one file, alarms first, text as text; looked at by a real browser where there is one."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import escape

from miles_lite.cli import main
from miles_lite.report import charts, event_rows, json_lines, rollout_table
from miles_lite.report.alarms import RULES
from miles_lite.report.beside import differences, side_by_side
from miles_lite.report.gap_histogram import gap_histogram
from miles_lite.report.page import render
from miles_lite.report.pictures import pictures
from miles_lite.report.record import read_record
from miles_lite.report.rollout_table import FOLDER
from tests.report.helpers import credit, keep
from tests.report.runs import BEGAN, FAULTS, all_rows, fail, write_run

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


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_comes_first(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_svg", lambda *_, **__: "<svg></svg>")  # to draw takes longest, and others test it
    record = read_record(write_run(tmp_path, seed=1, fault=FAULTS[fault], tables=10))
    page, own = render([record]), RULES[fault](record)
    assert own is not None
    title, evidence, advice = (str(escape(each)) for each in own)
    headings = re.findall(r"<h[1-3][^>]*>([^<]*)", page)
    assert headings[:3] == [tmp_path.name, "Alarms", title], "the first thing after the run's name"
    for said in (evidence, advice):
        assert 0 < page.index(said) < page.index("Summary") < page.index("<svg")


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
    faults = {"one": None, "other": FAULTS["truncation"]}
    records = [
        read_record(write_run(tmp_path / name, seed=seed, fault=fault, tables=5 * seed))
        for seed, (name, fault) in enumerate(faults.items())
    ]
    assert differences(records) == [("seed", ["0", "1"])]
    facts = [{"alarms": "none", "steps": "40"}, {"alarms": "Rollouts are cut", "steps": "40", "failed": "0"}]
    beside = side_by_side(records, list(faults), facts)
    assert beside is not None
    assert beside.facts == [
        ("alarms", ["none", "Rollouts are cut"]),
        ("steps", ["40", "40"]),
        ("failed", ["-", "0"]),
    ]
    reward = beside.pictures[0]
    assert reward.head == ["step", "one", "other"]
    assert len(reward.rows) == 40
    assert reward.draw().count("<g id=") > 0
    page = render(records)
    order = ["What differs", "Side by side", ">Rollouts are cut</td>", ">one</h1>", ">other</h1>"]
    assert sorted(order, key=page.index) == order
    assert side_by_side(records[:1], ["one"], [{}]) is None


def test_each_table_of_rollouts_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read, real = write_run(tmp_path, seed=0, steps=20), list[str](), rollout_table.table

    def counting(path: Path, columns: Sequence[str] = tuple(rollout_table.COLUMNS)) -> object:
        read.append(path.name)
        return real(path, columns)

    monkeypatch.setattr(rollout_table, "table", counting)
    for row in all_rows(run)[-2:]:
        keep(run, row, [40, 41])
    read.clear()
    page = render([read_record(run)])
    assert "best of the last step" in page
    assert sorted(read) == [f"{step:06d}.parquet" for step in range(20)]


def test_weight_updates_cross_the_rollouts_of_the_last_step(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=0, steps=3)
    json_lines.append(run / event_rows.FILE, [{"time": BEGAN + 20 + at, "kind": "weights"} for at in (-0.2, 1, 900)])
    (picture,) = [each for each in pictures(read_record(run)) if each.title == "Rollouts of the last step"]
    assert "new weights as lines" in picture.caption
    assert "new weights" in picture.draw()
    (run / event_rows.FILE).unlink()
    (picture,) = [each for each in pictures(read_record(run)) if each.title == "Rollouts of the last step"]
    assert "new weights" not in picture.caption + picture.draw()


@pytest.mark.parametrize(("apart", "place"), [(0.0, "< 1e-06"), (0.03, "≥ 0.01"), (3.0, "≥ 1")])
def test_gaps_and_ages_of_tokens_are_counted(apart: float, place: str, tmp_path: Path) -> None:
    def old(step: int, metrics: dict[str, object], rollouts: list[dict[str, object]]) -> None:
        for member, row in enumerate(rollouts):
            row["min_version"] = step - member % 3

    run = write_run(tmp_path, seed=0, steps=3, fault=old)
    for row in all_rows(run)[-2:]:
        keep(run, row, [40, 41])
        credit(run, row, [40, 41], trainer=[math.log(0.95) - apart], advantages=[0.5])
    (gaps,) = gap_histogram(run)
    assert [row for row in gaps.rows if row[1] != "0"] == [[place, "2"]]
    (ages,) = [each for each in pictures(read_record(run)) if each.title == "Staleness"]
    assert ages.rows == [["0", "33"], ["1", "33"], ["2", "30"]]
    for picture in (gaps, ages):
        assert ElementTree.fromstring(picture.draw()).tag.endswith("svg")


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
