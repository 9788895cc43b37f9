"""What an outcome comes to: one row of a table, flat names for JSON.

Invariant: measured is what is steady, not the first quarter of the steps, in which queues fill. A share is one of all
the time after that, weight updates included.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean

from miles_lite.simulation.scenario import Scenario
from miles_lite.simulation.world import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One simulation.

    engine_busy      tokens decoded, as a share of what engines decode that are full all the time, see `Engine`
    trainer_busy     share of time that the trainer trains
    trainer_waits    share of time that it waits for a batch; for the rest of it weights are on their way to engines
    bound            who would be the slower alone, with nothing to wait for: engines or trainer
    step_seconds     from one batch to the next
    tokens_per_second  trained, prompts and observations among them
    max_staleness, mean_staleness  weight versions between a rollout's first token and its training
    discarded        groups that ended and were not trained for their age or for want of use
    failed, lost     rollouts that infrastructure ended; members of groups that were judged without them
    rollouts         at once, on average
    """

    engine_busy: float
    trainer_busy: float
    trainer_waits: float
    bound: str
    step_seconds: float
    tokens_per_second: float
    max_staleness: int
    mean_staleness: float
    discarded: int
    failed: int
    lost: int
    preemptions: int
    rollouts: float
    steps: int

    def as_json(self) -> dict[str, float | str]:
        return asdict(self)


def measure(scenario: Scenario, outcome: Outcome) -> Measured:
    """Of an outcome with two steps at least."""
    steps = outcome.steps[(len(outcome.steps) - 1) // 4 :]
    began, ended = steps[0].began, steps[-1].began
    ticks = [tick for tick in outcome.ticks if began < tick.at <= ended] or outcome.ticks[-1:]
    trained = steps[:-1]
    span = ended - began
    engine_busy = fmean(tick.busy for tick in ticks)
    trainer_busy = sum(step.ended - step.began for step in trained) / span
    return Measured(
        engine_busy=engine_busy,
        trainer_busy=trainer_busy,
        trainer_waits=sum(after.began - step.synced for step, after in pairwise(steps)) / span,
        bound="engines" if engine_busy >= trainer_busy else "trainer",
        step_seconds=span / len(trained),
        tokens_per_second=sum(step.tokens for step in steps[1:]) / span,
        max_staleness=max(step.staleness for step in outcome.steps),
        mean_staleness=fmean(step.mean_staleness for step in steps[1:]),
        discarded=outcome.released.get("unused", 0),
        failed=outcome.failed,
        lost=outcome.lost,
        preemptions=outcome.preemptions,
        rollouts=fmean(tick.rollouts for tick in ticks),
        steps=len(outcome.steps),
    )
