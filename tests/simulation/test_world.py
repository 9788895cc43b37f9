"""The world around the scheduler: who is started is answered, bounds hold, the same seed gives the same run."""

from __future__ import annotations

import multiprocessing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from miles_lite.simulation.case import Case, simulate
from miles_lite.simulation.measure import measure
from miles_lite.simulation.scenario import Scenario, ScheduleModel, TaskModel, TrainerModel
from miles_lite.simulation.side_by_side import simulate_all
from miles_lite.simulation.workload import Workload

SMALL = Scenario(
    engines=2,
    sessions_per_engine=16,
    steps=6,
    trainer=TrainerModel(tokens_per_second=20_000.0, fixed=1.0, sync=1.0, pause=0.5),
    task=TaskModel(tokens_p50=200.0, tokens_p99=2_000.0, failures=0.15),
    schedule=ScheduleModel(rollout_batch_size=8, n_samples_per_prompt=4),
)


@given(
    staleness=st.integers(0, 4),
    rollouts=st.one_of(st.none(), st.integers(1, 64)),
    policy=st.sampled_from(["paced", "discard"]),
    mode=st.sampled_from(["in_place", "retract"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_no_batch_is_older_than_the_bound_and_pacing_discards_nothing(
    staleness: int, rollouts: int | None, policy: str, mode: str, seed: int
) -> None:
    scenario = replace(SMALL, seed=seed, trainer=replace(SMALL.trainer, mode=mode))
    outcome = simulate(Case(scenario, policy).at(staleness=staleness, rollouts=rollouts))
    assert outcome.stopped == ""
    assert len(outcome.steps) == SMALL.steps
    assert max(step.staleness for step in outcome.steps) <= staleness
    measured = measure(scenario, outcome)
    assert policy == "discard" or measured.discarded == 0
    assert 0.0 < measured.engine_busy <= 1.0
    assert 0.0 < measured.trainer_busy <= 1.0


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    def ends(seed: int) -> list[float]:
        return [step.ended for step in simulate(Case(replace(SMALL, seed=seed))).steps]

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_side_by_side_each_comes_out_as_alone() -> None:
    cases = [Case(SMALL), Case(SMALL).at(staleness=0, rollouts=None), Case(SMALL, "discard")]
    assert simulate_all(cases) == [simulate(case) for case in cases]
    assert not multiprocessing.active_children()


def test_in_step_the_trainer_and_the_engines_take_turns() -> None:
    outcome = simulate(Case(SMALL).at(staleness=0, rollouts=None))
    assert [step.mean_staleness for step in outcome.steps] == [0.0] * SMALL.steps
    for before, after in zip(outcome.steps, outcome.steps[1:], strict=False):
        assert after.began > before.synced


def test_overlapping_is_faster_than_taking_turns() -> None:
    long = replace(SMALL, steps=16)
    sync, ahead = (simulate(Case(long).at(staleness=staleness, rollouts=None)).seconds for staleness in (0, 2))
    assert ahead < sync


def test_work_depends_on_who_not_on_when() -> None:
    one, other = (Workload(TaskModel(), members=4, seed=3) for _ in range(2))
    first = [one.of(group, member, 0) for group in (0, 700, 3) for member in range(4)]
    again = [other.of(group, member, 0) for group in (3, 0, 700) for member in range(4)]
    assert [work.decode for work in first[:4]] == [work.decode for work in again[4:8]]
    assert [work.decode for work in first[4:8]] == [work.decode for work in again[8:]]
    assert one.of(5, 1, 1).decode == other.of(5, 1, 0).decode


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, -0.1, 0.1), (0.9, 0.7, 1.0)])
def test_siblings_are_as_alike_as_they_are_said_to_be(share: float, least: float, most: float) -> None:
    import numpy as np

    workload = Workload(TaskModel(group_share=share), members=2, seed=0)
    logs = np.log([[sum(workload.of(group, member, 0).decode) for member in range(2)] for group in range(512)])
    assert least < np.corrcoef(logs.T)[0, 1] < most
    assert np.median(np.exp(logs)) == pytest.approx(2_000, rel=0.2)


def test_a_scheduler_that_stops_ends_the_run_with_its_reason() -> None:
    scenario = replace(SMALL, task=replace(SMALL.task, failures=1.0))
    outcome = simulate(Case(scenario))
    assert "no group" in outcome.stopped


def test_a_depth_is_kept_at_its_own_bound_and_at_no_other() -> None:
    scenario = replace(SMALL, schedule=replace(SMALL.schedule, max_weight_staleness=4, pipeline_depth=1))
    assert Case(scenario).at(staleness=4, rollouts=8).scenario.schedule.pipeline_depth == 1
    assert Case(scenario).at(staleness=2, rollouts=8).scenario.schedule.pipeline_depth is None
