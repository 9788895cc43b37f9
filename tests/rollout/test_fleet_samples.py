"""How engines stood is written as it is seen, within bounds, to the last line before a kill."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest

from miles_lite.engine.reported_load import Load
from miles_lite.report import fleet_rows
from miles_lite.report import metric_names as names
from miles_lite.report.fleet_rows import COLUMNS
from miles_lite.rollout import fleet_samples
from miles_lite.rollout.fleet_samples import FleetSamples

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
BUSY = Load(kv_use=0.5, running=8, queued=2, preempted=1, tokens_per_second=812.5, version=3)
KILLED = """
import os, signal, sys
from pathlib import Path
from miles_lite.engine.reported_load import Load
from miles_lite.rollout.fleet_samples import FleetSamples
samples = FleetSamples(Path(sys.argv[1]))
samples.step = 0
for running in range(50):
    samples.record({0: Load(kv_use=0.5, running=running, queued=0, preempted=0)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_engine_has_a_row_at_each_look(tmp_path: Path) -> None:
    samples = FleetSamples(tmp_path)
    samples.record({0: BUSY})
    assert fleet_rows.read(tmp_path) == []
    samples.step = 7
    samples.record({0: BUSY, 1: None})
    samples.record({})
    first, second = fleet_rows.read(tmp_path)
    assert set(first) == set(second) == set(COLUMNS)
    told = {name: value for name, value in first.items() if name != "time"}
    assert told == {
        "step": 7,
        "engine": 0,
        "version": 3,
        "running": 8,
        "queued": 2,
        "kv_use": 0.5,
        "preempted": 1,
        "tokens_per_second": 812.5,
    }
    assert [name for name, value in second.items() if value is not None] == ["time", "step", "engine"]


def test_how_busy_engines_were_is_told_once(tmp_path: Path) -> None:
    samples = FleetSamples(tmp_path)
    assert samples.metrics() == {}
    samples.step = 0
    samples.record({0: BUSY, 1: replace(BUSY, running=0), 2: None})
    samples.record({0: BUSY, 1: BUSY, 2: None})
    assert samples.metrics() == {names.ENGINES_BUSY: 0.75}
    assert samples.metrics() == {}


def test_a_killed_run_has_its_last_look(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert [row["running"] for row in fleet_rows.read(tmp_path)] == list(range(50))
    with (tmp_path / fleet_rows.FILE).open("a") as file:
        file.write('{"time": 1.0, "eng')
    resumed = FleetSamples(tmp_path)
    resumed.step = 1
    resumed.record({0: BUSY})
    rows = fleet_rows.read(tmp_path)
    assert len(rows) == 51
    assert rows[-1]["step"] == 1
    assert fleet_rows.read(tmp_path, last=1000) == rows[-len(fleet_rows.read(tmp_path, last=1000)) :]
    assert 0 < len(fleet_rows.read(tmp_path, last=1000)) < 51


def test_a_long_run_is_written_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_samples, "BLOCK", 2000)
    samples = FleetSamples(tmp_path)
    samples.step = 0
    sizes = []
    for _ in range(4):
        for _ in range(500):
            samples.record({0: BUSY})
        sizes.append((tmp_path / fleet_rows.FILE).stat().st_size)
    grown = [after - before for before, after in pairwise(sizes)]
    assert grown == sorted(grown, reverse=True)
    assert sizes[-1] < 10 * 2000


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = FleetSamples(tmp_path / "gone")
    samples.step = 0
    for _ in range(3):
        samples.record({0: BUSY})
    assert caplog.text.count("the run goes on without") == 1


def test_duckdb_reads_it_with_the_types_of_the_page(tmp_path: Path) -> None:
    samples = FleetSamples(tmp_path)
    samples.step = 0
    samples.record({0: BUSY, 1: None})
    asked = f"describe select * from read_json_auto('{tmp_path / fleet_rows.FILE}')"
    found = duckdb.connect().execute(asked).fetchall()
    types = {"BIGINT": "int64", "DOUBLE": "double"}
    assert {name: types[kind] for name, kind, *_ in found} == {name: kind for name, (kind, _) in COLUMNS.items()}
    for name, (kind, says) in COLUMNS.items():
        assert f"| `{name}` | {kind} | {says} |" in PAGE
