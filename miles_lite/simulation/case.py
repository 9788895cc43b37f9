"""One simulation: the scenario under the scheduler of a run, or under what it is compared with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from miles_lite.scheduler.concurrency import Concurrency
from miles_lite.scheduler.schedule import Schedule, depth_of
from miles_lite.scheduler.scheduler import Scheduler
from miles_lite.simulation.baselines import DiscardWhenStale
from miles_lite.simulation.scenario import Scenario
from miles_lite.simulation.world import Outcome, Schedules, World

RETRIES = 3
"""Attempts that follow a failed one, as `--max-sample-retries` has it."""


class Endless:
    """Prompts that never come twice."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def take(self) -> int:
        return next(self._next)

    def __len__(self) -> int:
        return 1


POLICIES: dict[str, Callable[[Schedule], Schedules]] = {
    "paced": lambda schedule: Scheduler(schedule, Endless()),
    "discard": DiscardWhenStale,
}
"""`paced` is what a run does: what could become stale is not started. `discard` keeps the fleet full and drops it."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated, and under which policy."""

    scenario: Scenario
    policy: str = "paced"

    @property
    def name(self) -> str:
        schedule = self.scenario.schedule
        at_once = "auto" if schedule.rollout_concurrency is None else str(schedule.rollout_concurrency)
        return f"{self.policy}, {self.scenario.engines} engines, S={schedule.max_weight_staleness}, {at_once} at once"

    def at(self, *, staleness: int, rollouts: int | None) -> Case:
        """The same at this bound of staleness, with so many rollouts at once. A depth is one of its own bound's."""
        told = self.scenario.schedule
        depth = told.pipeline_depth if staleness == told.max_weight_staleness else None
        schedule = replace(told, max_weight_staleness=staleness, pipeline_depth=depth, rollout_concurrency=rollouts)
        return dataclasses.replace(self, scenario=replace(self.scenario, schedule=schedule))


def simulate(case: Case) -> Outcome:
    """Run it to its end."""
    scenario, told = case.scenario, case.scenario.schedule
    concurrency = None
    capacity = told.rollout_concurrency
    if capacity is None:
        concurrency = Concurrency(engines=scenario.engines, most=scenario.engines * scenario.sessions_per_engine)
        capacity = concurrency.rollouts
    staleness = told.max_weight_staleness
    schedule = Schedule(
        groups_per_step=told.rollout_batch_size,
        rollouts_per_group=told.n_samples_per_prompt,
        max_staleness=staleness,
        depth=depth_of(staleness, told.pipeline_depth),
        capacity=capacity,
        sample_retries=RETRIES,
    )
    return World(scenario, POLICIES[case.policy](schedule), concurrency=concurrency).run()
