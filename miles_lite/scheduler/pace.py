"""How many groups may be open: what could become too old is not started, so that nothing is discarded for its age."""

from __future__ import annotations

from miles_lite.scheduler.groups import Open
from miles_lite.scheduler.schedule import Schedule
from miles_lite.scheduler.state import State

AGAIN = 1.5
"""Of the time after which a rollout failed, what another is expected to take."""


def may_open(schedule: Schedule, state: State) -> bool:
    """Whether one more group can be trained in time wherever it ends up, and is to be started as early as now.

    Engines at version v, batches before step t given: what starts now is trained at step v + S at the latest, up to
    which there are v + S + 1 - t batches of P groups.
    """
    size, lag, open_ = schedule.groups_per_step, state.version - state.step, len(state.groups)
    bound = (lag + schedule.max_staleness + 1) * size
    target = (lag + schedule.depth + 1) * size + (schedule.extra if lag >= 0 else 0)
    if schedule.gives_up_extra:
        bound = target
    elif schedule.steps:
        bound = min(bound, (schedule.steps - state.step) * size)
    return open_ < bound and open_ - state.overtaken < target and may_refill(schedule, state)


def has_place(schedule: Schedule, state: State, group: Open, older: int) -> bool:
    """Whether `group` can be trained in time, with `older` open groups to be trained before it."""
    steps = group.version + schedule.max_staleness + 1 - state.step
    extra = schedule.extra if schedule.gives_up_extra else 0
    return steps > 0 and older < steps * schedule.groups_per_step + extra


def may_retry(schedule: Schedule, state: State, group: Open, ran: float) -> bool:
    """Whether a member of `group` whose rollout failed after `ran` seconds is to be run again: as long as half of the
    steps are left within which the group must be trained, and another rollout that is longer by half ends within them.
    One that does not holds up trainer and engines more than it adds."""
    age = state.version - group.version
    left = (schedule.max_staleness - age) * state.step_seconds
    return age == 0 or (2 * age <= schedule.max_staleness and AGAIN * ran <= left)


def may_refill(schedule: Schedule, state: State) -> bool:
    """Whether not so many groups were started for the next batch that no more are worth it."""
    return state.opened < (schedule.refill + schedule.max_staleness) * schedule.groups_per_step


def has_room(schedule: Schedule, state: State, *, fresh: bool) -> bool:
    """Whether one more rollout may start, the first of its group (`fresh`) or not."""
    if schedule.granularity == "sample":
        return len(state.running) < state.capacity
    return not fresh or state.active < max(1, state.capacity // schedule.rollouts_per_group)


def tally(schedule: Schedule, state: State, kept: int) -> str:
    """What became of the groups that were started for a batch."""
    what = ", ".join(f"{reason} x{count}" for reason, count in state.dropped.most_common()) or "nothing dropped"
    return (
        f"{kept} of {schedule.groups_per_step} groups after starting {state.opened} ({schedule.refill}x the batch): "
        f"{what}."
    )
