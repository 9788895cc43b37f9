"""Groups are counted as their rewards say, and pass rates are those that a run logs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_lite.errors import Where
from miles_lite.report import rollout_table
from miles_lite.report.group_tally import MOST_ROWS, Groups, group_table
from miles_lite.report.rollout_tally import COLUMNS
from miles_lite.rollout.generate import Step
from miles_lite.rollout.metrics import judged, no_gradient, pass_rates, zero_std
from miles_lite.rollout.recorded import rows_of
from miles_lite.sample import Group, Rollout, Status

REWARDS = st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.5, None, "failed"]), min_size=1, max_size=5), max_size=6)


def a_group(index: int, rewards: list[float | str | None]) -> Group:
    group = Group(index, {"row": index})
    for member, reward in enumerate(rewards):
        one = Rollout(10 * index + member, index, status=Status.COMPLETED)
        if isinstance(reward, str):
            one.fail(Where.TOOL, "gone")
        else:
            one.reward = reward
        group.rollouts.append(one)
    return group


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REWARDS)
def test_it_is_what_the_groups_say(rewards: list[list[float | str | None]]) -> None:
    groups = [a_group(index, of) for index, of in enumerate(rewards)]
    step = Step(groups=groups, finished=groups, replaced=[a_group(0, ["failed"])])
    with TemporaryDirectory() as folder:
        rollout_table.write(Path(folder), 0, rows_of(0, step))
        counted = Groups.of(rollout_table.readable(rollout_table.step_path(Path(folder), 0), COLUMNS))
    those = judged(groups)
    assert counted.solved.total() == len(those)
    assert counted.flat == sum(map(no_gradient, those))
    logged = zero_std(those)
    assert (counted.all_zero, counted.all_one) == (logged.get("count_0.0", 0), logged.get("count_1.0", 0))
    for name, rate in pass_rates(those).items():
        assert counted.pass_rate(int(name.partition("@")[2])) == pytest.approx(rate)


@pytest.mark.parametrize("steps", [1, 5, 12, 13, 1000])
def test_a_table_has_few_rows_and_counts_every_group_once(steps: int) -> None:
    of = {step: Groups.together([]) for step in range(steps)}
    for step, groups in of.items():
        groups.solved[4, step % 5] += 2
    head, rows = group_table(of)
    assert head[-3:] == ["pass@1", "pass@2", "pass@4"]
    parts = rows[:-1] if steps > 1 else rows
    assert len(parts) <= MOST_ROWS
    assert sum(int(row[1]) for row in parts) == int(rows[-1][1]) == 2 * steps
    assert all(len(row) == len(head) for row in rows)


def test_nothing_has_no_table() -> None:
    assert group_table({})[1] == []
    assert group_table({3: Groups()})[1] == []
