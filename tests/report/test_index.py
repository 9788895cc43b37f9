"""Questions about a run's rollouts: DuckDB finds what a look at every row finds, also while the files change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.report import rollout_table
from miles_lite.report.index import SHOWN, Filter, Index
from miles_lite.report.rollout_table import Row
from tests.report.helpers import keep
from tests.report.runs import fail, write_run

FILTERS = st.builds(
    Filter,
    step=st.none() | st.integers(0, 6),
    group=st.none() | st.integers(0, 50),
    where=st.none() | st.sampled_from(["tool", "engine"]),
    status=st.none() | st.sampled_from(["completed", "failed"]),
    outcome=st.none() | st.sampled_from(["trained", "failed_tool"]),
    least=st.none() | st.sampled_from([0.0, 0.5]),
    most=st.none() | st.sampled_from([0.5, 1.0]),
    limit=st.integers(0, 40),
    offset=st.integers(0, 80),
)


def broken(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts[step::5]:
        fail(row, "tool", "it does not answer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), seed=1, steps=5, fault=broken)


def by_looking(run: Path, wanted: Filter) -> list[Row]:
    rows = [row for step in reversed(range(5)) for row in rollout_table.read_step(run, step)]
    for name in ("step", "group", "where", "status", "outcome"):
        value = getattr(wanted, name)
        rows = [row for row in rows if value is None or row[name] == value]
    for bound, sign in ((wanted.least, 1), (wanted.most, -1)):
        rows = [
            row for row in rows if bound is None or (row["reward"] is not None and sign * (row["reward"] - bound) >= 0)
        ]
    shown = [{name: row[name] for name in SHOWN} for row in rows]
    return shown[wanted.offset : wanted.offset + wanted.limit]


@settings(max_examples=40, deadline=None)
@given(FILTERS)
def test_it_finds_what_a_look_at_every_row_finds(run: Path, wanted: Filter) -> None:
    assert Index(run).find(wanted) == by_looking(run, wanted)


def test_it_follows_a_run_that_goes_on_and_steps_that_are_done_again(tmp_path: Path) -> None:
    run, failed = write_run(tmp_path, seed=1, steps=2), Filter(where="tool", limit=1000)
    index = Index(run)
    assert index.find(failed) == []
    rows = rollout_table.read_step(run, 1)
    rollout_table.write(run, 2, [{**row, "step": 2} for row in rows])
    fail(rows[3], "tool", "gone")
    rollout_table.write(run, 1, rows)
    assert [(row["step"], row["rollout"]) for row in index.find(failed)] == [(1, rows[3]["rollout"])]
    assert len(index.find(Filter(status="completed", limit=1000))) == 3 * len(rows) - 1
    rollout_table.step_path(run, 1).unlink()
    assert index.find(failed) == []


def test_words_are_found_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=1, steps=2)
    one, other = rollout_table.read_step(run, 0)[3], rollout_table.read_step(run, 1)[4]
    keep(run, one, [40], said="100 %_ of it, \"so\" 'to' say;\n\\ü")
    keep(run, other, [40], said="100 and some of it")
    index = Index(run)
    for text, rows in {
        "100 %_ of": [one],
        "\"so\" 'to' say;\n\\ü": [one],
        "100": [other, one],
        "' or 1=1 --": [],
    }.items():
        assert [row["rollout"] for row in index.find(Filter(text=text))] == [row["rollout"] for row in rows]
    assert index.find(Filter(text="100", step=0)) == [{name: one[name] for name in SHOWN}]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=1, steps=2)
    rollout_table.step_path(run, 0).write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read"):
        Index(run).find(Filter(where="tool"))
    assert Index(run).find(Filter(step=1))
