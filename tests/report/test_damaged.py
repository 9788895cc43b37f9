"""Whatever stands in a run's folder, there is a page of it, or one message that names the file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from miles_lite.cli import main
from miles_lite.errors import UserError
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import alarms
from miles_lite.report.page import render
from miles_lite.report.record import read_record
from miles_lite.report.rollout_table import ALWAYS, COLUMNS, FOLDER
from tests.report.runs import write_run

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2),
)
NAMES = sorted({value for value in vars(names).values() if isinstance(value, str) and "/" in value} | {"eval/x"})
METRICS = st.lists(st.dictionaries(st.sampled_from(NAMES), ODD, max_size=6), max_size=30)


@settings(max_examples=60, deadline=None)
@given(METRICS)
def test_no_metric_breaks_a_rule(rows: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        alarms(read_record(Path(folder)))


@settings(max_examples=6, deadline=None)
@given(METRICS, st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
def test_no_metric_and_no_name_keep_a_page_from_being_made(rows: list[dict[str, Any]], name: str) -> None:
    held = {f"eval/{name}": 0.5, f"eval/{name}-none_reward_ratio": 0.0}
    rows = [*rows, *({"eval/step": step, **held} for step in range(3)), {"eval/step": 9, "eval/$\\frac{1}{0$": 1e308}]
    with TemporaryDirectory() as folder:
        Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert "held-out" in render([read_record(Path(folder))])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(column=st.sampled_from(sorted(COLUMNS)), value=st.none() | st.floats() | st.text(max_size=3) | st.integers(0, 9))
def test_a_table_with_another_column_is_read_or_named(tmp_path: Path, column: str, value: object) -> None:
    run = write_run(tmp_path / "run", seed=0, steps=1)
    (path,) = (run / FOLDER).glob("*.parquet")
    rows = [row | {column: value} for row in parquet.read_table(path).to_pylist()[:2]]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with contextlib.suppress(UserError):
        record = read_record(run)
        alarms(record)
        render([record])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_run_of_another_version_lacks_a_column(column: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=0, steps=1)
    (path,) = (run / FOLDER).glob("*.parquet")
    parquet.write_table(parquet.read_table(path).drop_columns([column]), path)
    if column in ALWAYS:
        with pytest.raises(UserError, match=f"000000.parquet has rows without {column}"):
            read_record(run)
    else:
        assert all(row[column] is None for row in read_record(run).rollouts)


OUT: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "a folder": lambda at: (at, "is no file that could be replaced"),
    "a device": lambda at: (Path("/dev/full"), "is no file that could be replaced"),
    "nowhere": lambda at: (at / "no" / "where.html", "cannot be written: No such file"),
    "below a file": lambda at: (at / "config.json" / "x.html", "cannot be written: Not a directory"),
    "a long name": lambda at: (at / ("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("where", OUT)
def test_a_page_that_cannot_be_written_is_said(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    out, said = OUT[where](tmp_path)
    assert main(["report", str(tmp_path), "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not Path("/dev/full").is_file()


def test_options_that_are_no_unicode_and_folders_of_one_name_are_shown(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run" for name in ("a", "b")]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
    (runs[0] / "config.json").write_text('{"model": {"hf_checkpoint": "\\udcff"}}')
    assert main(["report", *map(str, runs)]) == 0
    page = (runs[0] / "report.html").read_text(encoding="utf-8")
    for run in runs:
        assert f">{run}</h1>" in page
