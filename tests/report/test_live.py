"""The alarms of a run that goes on are those of its folder, and each is told once while it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.job.events import Events
from miles_lite.report import event_rows
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import RULES, WINDOW, alarms
from miles_lite.report.event_rows import Kind
from miles_lite.report.history import read_history
from miles_lite.report.live import Change, LiveAlarms
from miles_lite.report.record import METRICS, read_record
from tests.report.runs import FAULTS, STEPS, write_run


def followed(folder: Path) -> list[Change]:
    """What each step of a recorded run changes, as a run would be told of it."""
    rows = read_history(folder / METRICS)
    (folder / METRICS).unlink()
    live, changes = LiveAlarms(folder), []
    for step in range(STEPS):
        for row in rows:
            if step in (row.get(axis) for axis in (names.ROLLOUT_STEP, names.TRAIN_STEP, names.EVAL_STEP)):
                live.add({name: value for name, value in row.items() if value is not None}, step)
        changes.append(live.after(step))
    return changes


@pytest.mark.parametrize("rule", RULES)
def test_a_running_run_sees_what_its_folder_tells(rule: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path, seed=1, fault=FAULTS[rule])
    expected = {alarm.rule for alarm in alarms(read_record(folder))}
    changes = followed(folder)
    stands = {name.removeprefix(names.ALARMS) for name, value in changes[-1].metrics.items() if value}
    assert expected <= stands
    assert rule in stands
    raised = [alarm.rule for change in changes for alarm in change.raised]
    ended = [rule for change in changes for rule in change.ended]
    assert all(raised.count(each) - ended.count(each) == (each in stands) for each in set(raised))


def test_a_healthy_run_is_told_nothing(tmp_path: Path) -> None:
    changes = followed(write_run(tmp_path, seed=2))
    assert all((change.raised, change.ended, change.metrics) == ([], [], {}) for change in changes)


def test_an_alarm_of_a_lost_attempt_is_not_raised_again_and_ends(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        events.write()
        events.record(Kind.ALARM, "The gradient spikes: 50", step=9, what="gradient_spike")
        events.record(Kind.ALARM, "Rollouts fail: all", step=9, what="failures")
        live, raised, ended = LiveAlarms(tmp_path), list[str](), list[str]()
        for step in range(10, 60):
            live.add({names.GRAD_NORM: 50.0 if step == 18 else 1.0}, step)
            change = live.after(step)
            raised += [alarm.rule for alarm in change.raised]
            for rule in change.ended:
                ended.append(rule)
                events.record(Kind.CALM, "not seen", step=step, what=rule)
    assert sorted(ended) == ["failures", "gradient_spike", "gradient_spike"]
    assert raised == ["gradient_spike"], "only that of step 18, after the first had ended"
    assert event_rows.active_alarms(event_rows.read(tmp_path)) == {}


def test_an_alarm_ends_once_its_rule_was_quiet_for_long(tmp_path: Path) -> None:
    live, told = LiveAlarms(tmp_path), []
    for step in range(60):
        live.add({names.GRAD_NORM: 50.0 if step in (10, 12) else 1.0}, step)
        change = live.after(step)
        told += [(step, "alarm", alarm.rule) for alarm in change.raised]
        told += [(step, "calm", rule) for rule in change.ended]
    (raised, ended) = told
    assert raised == (10, "alarm", "gradient_spike")
    assert ended[1:] == ("calm", "gradient_spike")
    assert ended[0] >= 12 + WINDOW
    assert live.after(60).metrics == {"alarm/gradient_spike": 0.0}
