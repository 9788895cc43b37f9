"""Every rollout that ended for a step has its row, whatever became of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import Where
from miles_lite.report import rollout_table
from miles_lite.rollout.generate import Step
from miles_lite.rollout.recorded import rows_of
from miles_lite.sample import Group, Rollout, Spans
from tests.report.runs import all_rows
from tests.rollout.helpers import a_group, failed

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")


def a_step(trained: int, filtered: int, unused: int, replaced: list[Rollout]) -> Step:
    step, number = Step(replaced=[Group(0, {"row": 3}, [rollout]) for rollout in replaced]), 0
    for ends, count in (("trained", trained), ("filtered", filtered), ("unused", unused)):
        for _ in range(count):
            group = a_group(0.0, 1.0)
            group.index = number
            number += 1
            step.finished.append(group)
            if ends == "trained":
                step.groups.append(group)
            if ends == "filtered":
                step.reasons[group.index] = "even"
    return step


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.lists(st.sampled_from(Where), max_size=3))
def test_every_rollout_has_a_row_of_every_column(trained: int, filtered: int, unused: int, broke: list[Where]) -> None:
    rows = list(rows_of(7, a_step(trained, filtered, unused, [failed(where) for where in broke])))
    outcomes = [row["outcome"] for row in rows]
    counts = {"trained": 2 * trained, "even": 2 * filtered, "unused": 2 * unused, "retried": len(broke)}
    assert {name: outcomes.count(name) for name in counts} == counts
    assert len(rows) == sum(counts.values())
    assert all(set(row) == set(rollout_table.COLUMNS) for row in rows)
    assert [row["where"] for row in rows if row["outcome"] == "retried"] == broke
    assert all(row["reward"] is None for row in rows if row["where"] is not None)
    assert {row["prompt_row"] for row in rows if row["outcome"] == "retried"} <= {"3"}


def test_a_row_says_where_its_time_went_and_why_its_history_forked() -> None:
    step = a_step(1, 0, 0, [])
    one, other = step.groups[0].rollouts
    one.started_at, one.finished_at = 100.0, 110.0
    one.spans = Spans(model=6.0, prefill=2.0, tool=1.5, tools={"bash": 1.0, "search": 0.5}, reward=0.5)
    one.samples[0].metadata["counts"] = {"turns": 3, "forks": 3, "forks_edit": 2, "forks_parallel": 1}
    row, unknown = rows_of(0, step)
    assert (row["prefill"], row["decode"], row["idle"]) == (2.0, 4.0, 2.0)
    assert orjson.loads(row["tools"]) == {"bash": 1.0, "search": 0.5}
    assert orjson.loads(row["forks"]) == {"edit": 2.0, "parallel": 1.0}
    assert other.samples
    other.samples[0].metadata["counts"] = ["forks_edit"]
    assert [row["forks"] for row in rows_of(0, step)][1] is None
    assert all(unknown[name] is None for name in ("prefill", "decode", "tools", "forks", "advantage"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    steps = {step: list(rows_of(step, a_step(2, 1, 0, [failed(Where.AGENT)]))) for step in (0, 1, 10)}
    for step, rows in steps.items():
        rollout_table.write(tmp_path, step, rows)
    rollout_table.write(tmp_path, 1, steps[1])
    assert all_rows(tmp_path) == [row for rows in steps.values() for row in rows]
    assert rollout_table.read_step(tmp_path, 10) == steps[10]
    assert not list(tmp_path.rglob(".*"))


def test_a_manager_that_writes_it_does_not_carry_pandas(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from miles_lite.report import rollout_table as table; "
    code += "table.write(Path(sys.argv[1]), 0, [{'step': 0, 'reward': 0.5}]); print('pandas' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "False", said.stderr


@pytest.mark.parametrize("column", rollout_table.COLUMNS)
def test_a_column_is_in_the_docs(column: str) -> None:
    kind, says = rollout_table.COLUMNS[column]
    assert f"| `{column}` | {kind} | {says} |" in PAGE


def test_duckdb_and_pandas_read_the_folder_as_one_table(tmp_path: Path) -> None:
    for step in (0, 1):
        rollout_table.write(tmp_path, step, rows_of(step, a_step(2, 1, 1, [failed(Where.TOOL)])))
    rollout_table.credit(tmp_path, 1, {0: 0.5})
    rows, folder = all_rows(tmp_path), tmp_path / rollout_table.FOLDER
    asked = duckdb.sql(f"select * from '{folder}/*.parquet' order by step, rollout, outcome")
    assert asked is not None
    kinds = {"int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN"}
    assert dict(zip(asked.columns, map(str, asked.types), strict=True)) == {
        name: kinds[kind] for name, (kind, _) in rollout_table.COLUMNS.items()
    }
    assert len(asked.fetchall()) == len(rows)
    frame = pytest.importorskip("pandas").read_parquet(folder)
    assert list(frame.columns) == list(rollout_table.COLUMNS)
    assert frame["reward"].sum() == sum(row["reward"] or 0 for row in rows)
    assert frame["advantage"].dropna().unique().tolist() == [0.5]
