"""Every rule sees its fault in ten runs of ten, and nothing in ten runs that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.report.alarms import RULES, alarms
from miles_lite.report.history import Curves
from miles_lite.report.record import Record, read_record
from tests.report.runs import FAULTS, NO_FAULTS, OTHER_FAULTS, Fault, write_run

SEEDS = range(10)
TABLES = 10
"""Steps whose rollouts no rule looks beyond."""
PLANTED = {**{rule: (rule, fault) for rule, fault in FAULTS.items()}, **OTHER_FAULTS}


def test_every_rule_has_a_fault() -> None:
    assert FAULTS.keys() == RULES.keys()


@pytest.mark.parametrize("planted", PLANTED)
def test_a_rule_sees_its_fault_before_all_else(planted: str, tmp_path: Path) -> None:
    rule, fault = PLANTED[planted]
    for seed in SEEDS:
        found = alarms(read_record(write_run(tmp_path / str(seed), seed=seed, fault=fault, tables=TABLES)))
        assert [alarm.rule for alarm in found][:1] == [rule], seed
        assert all(alarm.title and alarm.evidence and alarm.advice for alarm in found)


def test_a_run_that_learns_raises_none(tmp_path: Path) -> None:
    for seed in SEEDS:
        assert alarms(read_record(write_run(tmp_path / str(seed), seed=seed, tables=TABLES))) == []


@pytest.mark.parametrize("fault", NO_FAULTS.values(), ids=NO_FAULTS.keys())
def test_what_only_looks_like_one_raises_none(fault: Fault, tmp_path: Path) -> None:
    assert alarms(read_record(write_run(tmp_path, seed=0, fault=fault, tables=TABLES))) == []


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_little_or_nothing_raises_none(steps: int, tmp_path: Path) -> None:
    assert alarms(read_record(write_run(tmp_path, seed=0, steps=steps, ended=False))) == []


def test_what_a_record_lacks_raises_nothing(tmp_path: Path) -> None:
    empty = Record(folder=tmp_path, curves=Curves(), rollouts=[], options={}, summary={})
    assert alarms(empty) == []
