"""Engines over time: lines that are few and short, whatever a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from miles_lite.report import fleet_rows
from miles_lite.report.fleet_lines import MOST_LINES, MOST_POINTS, fleet_lines
from miles_lite.report.json_lines import JsonLines
from miles_lite.report.page import render, run_view
from miles_lite.report.record import read_record
from tests.report.runs import write_run

ODD = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(fleet_rows.COLUMNS, ODD)), max_size=8)


def looks(engines: int, seconds: float, every: float = 5.0) -> list[dict[str, Any]]:
    return [
        {
            "time": 1.7e9 + every * look,
            "step": look // 3,
            "engine": engine,
            "version": look // 3,
            "running": 10 * engine,
            "queued": 0,
            "kv_use": engine / 100,
            "preempted": 0,
            "tokens_per_second": 9.5,
        }
        for look in range(int(seconds / every))
        for engine in range(engines)
    ]


def test_a_line_for_each_engine_of_a_few_and_three_for_many() -> None:
    few = fleet_lines(looks(2, 60), "kv_use")
    assert few.unit == "seconds"
    assert few.lines == {f"engine {each}": {5 * look: each / 100 for look in range(12)} for each in range(2)}
    many = fleet_lines(looks(9, 60), "running").lines
    assert {name: set(line.values()) for name, line in many.items()} == {"least": {0}, "median": {40}, "most": {80}}


def test_a_long_run_has_as_many_points_as_a_picture_shows() -> None:
    long = fleet_lines(looks(1, 80_000), "version")
    assert long.unit == "minutes"
    (line,) = long.lines.values()
    assert 100 < len(line) <= MOST_POINTS
    assert list(line.values()) == sorted(line.values())


@given(ROWS, st.sampled_from(sorted(fleet_rows.COLUMNS)))
def test_whatever_rows_say_is_bounded(rows: list[dict[str, Any]], column: str) -> None:
    lines = fleet_lines([fleet_rows.whole(row) for row in rows], column).lines
    assert len(lines) <= MOST_LINES
    assert all(len(line) <= MOST_POINTS for line in lines.values())


def test_the_page_has_engines_over_time(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seed=1, steps=4)
    titles = {"KV cache", "Requests", "Queues", "Weights"}
    (folder / fleet_rows.FILE).unlink()
    assert titles & {picture.title for picture in run_view(read_record(folder)).pictures} == set()
    JsonLines(folder / fleet_rows.FILE).write(looks(2, 60))
    (folder / fleet_rows.FILE).open("a").write('{"time": 1')
    told = run_view(read_record(folder))
    assert titles <= {picture.title for picture in told.pictures}
    weights = next(picture for picture in told.pictures if picture.title == "Weights")
    assert weights.head == ["seconds", "engine 0", "engine 1"]
    assert weights.rows[-1] == ["55", "3", "3"]
    assert "share of the KV cache that requests hold, by engine" in render([read_record(folder)])
    assert read_record(folder, steps=0).fleet == []
    assert len(read_record(folder, steps=1).fleet) == 24
