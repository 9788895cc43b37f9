from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.protocol import AttemptId, End
from miles_lite.scheduler.schedule import Schedule
from tests.scheduler.world import World

WHERES = ("engine", "session", "tool")


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    staleness = draw(st.integers(0, 4))
    members = draw(st.integers(1, 4))
    return Schedule(
        groups_per_step=draw(st.integers(1, 5)),
        rollouts_per_group=members,
        max_staleness=staleness,
        depth=draw(st.integers(0, staleness)),
        extra=draw(st.sampled_from([0, 0, 1, 3])),
        capacity=draw(st.integers(1, 24)),
        sample_retries=draw(st.integers(0, 3)),
        quarantine_after=draw(st.integers(0, 2)),
        patience=draw(st.sampled_from([0.0, 8.0])),
        order=draw(st.sampled_from(["fifo", "longest"])),
        granularity=draw(st.sampled_from(["sample", "group"])),
        reuse_unused=draw(st.booleans()),
        refill=draw(st.sampled_from([2, 20])),
    )


class Machine(RuleBasedStateMachine):
    """Any order of what can happen."""

    @initialize(schedule=schedules())
    def begin(self, schedule: Schedule) -> None:
        self.world = World(schedule)

    def pick(self, data: st.DataObject, among: object) -> object:
        return data.draw(st.sampled_from(sorted(among)))  # type: ignore[call-overload]

    @precondition(lambda self: self.world.running and not self.world.stopped)
    @rule(data=st.data(), failed=st.sampled_from(["", "", "", *WHERES]), length=st.integers(1, 1000))
    def ends(self, data: st.DataObject, failed: str, length: int) -> None:
        self.world.end(self.pick(data, self.world.running), failed, length)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.lost and not self.world.stopped)
    @rule(data=st.data())
    def answers_late(self, data: st.DataObject) -> None:
        self.world.answer_late(self.pick(data, self.world.lost))  # type: ignore[arg-type]

    @precondition(lambda self: self.world.judging and not self.world.stopped)
    @rule(data=st.data(), end=st.sampled_from([None, None, End.FILTERED, End.FAILED]))
    def judges(self, data: st.DataObject, end: End | None) -> None:
        self.world.judge(self.pick(data, self.world.judging), end)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.training is not None)
    @rule()
    def trains(self) -> None:
        self.world.trained()

    @precondition(lambda self: self.world.behind)
    @rule()
    def updates(self) -> None:
        self.world.updated()

    @precondition(lambda self: self.world.training is None and not self.world.wants)
    @rule()
    def wants(self) -> None:
        self.world.want()

    @rule(rollouts=st.integers(0, 24))
    def resizes(self, rollouts: int) -> None:
        self.world.tell(m.Capacity(rollouts))

    @rule()
    def ticks(self) -> None:
        self.world.tell(m.Tick())

    @precondition(lambda self: not self.world.stopped)
    @rule(keep=st.booleans(), schedule=st.none() | schedules())
    def crashes(self, keep: bool, schedule: Schedule | None) -> None:
        self.world.crash(keep=keep, schedule=schedule)

    @rule()
    def forks(self) -> None:
        self.world.fork()

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.world.stopped:
            self.world.tell(m.Capacity(2))
            self.world.batches(3)
            self.world.check()


def test_laws_hold_in_any_order_of_events() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=50, stateful_step_count=60, deadline=None))


def random_schedule(chance: random.Random) -> Schedule:
    staleness = chance.randint(0, 5)
    return Schedule(
        groups_per_step=chance.randint(1, 6),
        rollouts_per_group=chance.randint(1, 3),
        max_staleness=staleness,
        depth=chance.randint(0, staleness),
        extra=chance.choice([0, 0, 2]),
        capacity=chance.choice([4, 100]),
        sample_retries=chance.randint(0, 2),
        patience=chance.choice([0.0, 200.0]),
        order=chance.choice(["fifo", "longest"]),
        granularity=chance.choice(["sample", "group"]),
    )


def live(world: World, chance: random.Random, events: int) -> None:
    """Let `events` happen, in an order of which stragglers, failures and crashes are a part."""
    while world.now < events and not world.stopped:
        luck = chance.random()
        if luck < 0.002:
            world.crash(keep=chance.random() < 0.7, schedule=chance.choice([None, random_schedule(chance)]))
        elif luck < 0.004:
            world.fork()
        elif luck < 0.02:
            world.tell(m.Tick())
        elif luck < 0.03 and world.lost:
            world.answer_late(chance.choice(sorted(world.lost)))
        elif luck < 0.2 and world.training is not None:
            world.trained()
        elif luck < 0.4 and world.behind:
            world.updated()
        elif luck < 0.6 and world.training is None and not world.wants:
            world.want()
        elif world.judging and luck < 0.8:
            end = chance.choice([None, None, None, End.FILTERED, End.FAILED])
            world.judge(chance.choice(sorted(world.judging)), end)
        elif quick := [who for who in world.running if who.group % 7 or luck > 0.99]:
            world.end(chance.choice(quick), chance.choice(["", "", "", "tool"]), chance.randint(1, 99))


@pytest.mark.parametrize("seed", range(40))
def test_laws_hold_through_long_runs_with_stragglers(seed: int) -> None:
    chance = random.Random(seed)
    world = World(random_schedule(chance))
    live(world, chance, 1000)
    if not world.stopped:
        world.batches(2 * world.schedule.max_staleness + 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_laws_hold_through_very_long_runs(seed: int) -> None:
    chance = random.Random(seed)
    world = World(random_schedule(chance))
    live(world, chance, 100_000)
    assert len(world.given) > 100


def until_a_straggler_is_overtaken(staleness: int) -> tuple[World, AttemptId]:
    """A world in which everything else is trained past it."""
    schedule = Schedule(
        groups_per_step=4,
        rollouts_per_group=2,
        max_staleness=staleness,
        depth=staleness,
        sample_retries=2,
        capacity=100,
    )
    return World(schedule), AttemptId(4 * staleness + 3, 0, 0)


def train(world: World, straggler: AttemptId) -> None:
    """A step, in which every other rollout may end."""
    world.want()
    while world.training is None:
        world.end(next(who for who in world.running if who != straggler))
        for group in list(world.judging):
            world.judge(group, None)
    world.trained()
    world.updated()


@pytest.mark.parametrize(("staleness", "late"), [(0, 1), (1, 1), (3, 2), (8, 4)])
def test_what_fails_when_another_would_not_end_in_time_leaves_the_group_smaller(staleness: int, late: int) -> None:
    """Half of the steps are left, or fewer than another takes that is longer by half."""
    for version in range(min(late, staleness) + 1):
        world, straggler = until_a_straggler_is_overtaken(staleness)
        for _ in range(version):
            train(world, straggler)
        world.end(straggler, "tool")
        assert (straggler._replace(attempt=1) in world.running) == (version < late)


def test_what_failed_soon_is_run_again_where_what_ran_long_is_not() -> None:
    world, straggler = until_a_straggler_is_overtaken(8)
    again = straggler._replace(attempt=1)
    for version in range(4):
        if version == 3:
            world.end(straggler, "tool")
        train(world, straggler if version < 3 else again)
    world.end(again, "tool")
    assert straggler._replace(attempt=2) in world.running
