"""A world that a scheduler acts in: it does what the commands say, in any order that its driver picks, and knows on its
own what must hold."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from statistics import median

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.protocol import AttemptId, Command, End, Event
from miles_lite.scheduler.schedule import Schedule
from miles_lite.scheduler.scheduler import Scheduler


class Deals:
    """Prompts in turn."""

    def __init__(self, size: int, at: int = 0) -> None:
        self.size, self.at = size, at

    def take(self) -> int:
        self.at += 1
        return (self.at - 1) % self.size

    def __len__(self) -> int:
        return self.size


@dataclass
class Seen:
    """A group, as the world sees it: the version of each answer, how often one failed, by member, and since when it
    runs; whose failures came too late for another attempt."""

    prompt: int
    begun: int | None = None
    late: set[int] = field(default_factory=set)
    answers: dict[int, int] = field(default_factory=dict)
    failed: Counter[int] = field(default_factory=Counter)

    def again(self) -> None:
        """No answer of it is left."""
        self.answers.clear()
        self.failed.clear()
        self.late.clear()
        self.begun = None


class World:
    def __init__(self, schedule: Schedule, prompts: int = 7) -> None:
        self.schedule = schedule
        self.prompts = Deals(prompts)
        self.scheduler = Scheduler(schedule, self.prompts)
        self.twin: tuple[Scheduler, Deals] | None = None
        self.now = 0.0
        self.version = self.step = 0
        self.training: tuple[int, ...] | None = None
        self.behind = False
        """Whether the engines wait for the weights of the last step."""
        self.running: dict[AttemptId, int] = {}
        self.since: dict[AttemptId, float] = {}
        self.served_at: float | None = None
        self.took: list[float] = []
        self.refits = False
        """Whether another schedule takes over what the one before began."""
        self.lost: dict[AttemptId, int] = {}
        """Replaced, and may answer all the same."""
        self.judging: dict[int, int] = {}
        self.groups: dict[int, Seen] = {}
        self.ends: dict[int, End] = {}
        self.counts: Counter[End] = Counter()
        """Of `ends`."""
        self.unfinished: set[int] = set()
        """Of `groups`, those without an end."""
        self.fresh = 0
        """Groups since the last batch, or since the run went on."""
        self.stopped = ""
        self.given: list[tuple[int, ...]] = []
        self.attempts: set[AttemptId] = set()
        self.tell(m.Updated(0))

    # ---- events ----------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        self.now += 1.0
        commands = self.scheduler.on(event, self.now)
        if self.twin is not None:
            other, _ = self.twin
            assert other.on(event, self.now) == commands
        for command in commands:
            self.obey(command)
            if isinstance(event, m.Tick) and isinstance(command, m.Cancel):
                self.fail(command.who, self.now)
        self.check()

    def end(self, who: AttemptId, failed: str = "", length: int = 1) -> None:
        version = self.running.pop(who)
        self.answer(who, version, failed, length)

    def answer_late(self, who: AttemptId) -> None:
        self.answer(who, self.lost.pop(who), "", 1)

    def answer(self, who: AttemptId, version: int, failed: str, length: int) -> None:
        seen = self.groups.get(who.group)
        if seen is not None and who.group not in self.ends and who.member not in seen.answers:
            if failed:
                self.fail(who, self.now + 1.0)
            elif who.member not in seen.late:
                seen.answers[who.member] = version
        self.tell(m.Finished(who, length, failed, failed and "it broke"))

    def fail(self, who: AttemptId, now: float) -> None:
        seen = self.groups[who.group]
        seen.failed[who.member] += 1
        assert seen.begun is not None
        age, bound = self.version - seen.begun, self.schedule.max_staleness
        ends = 1.5 * (now - self.since[who]) <= (bound - age) * (median(self.took) if self.took else inf)
        if seen.failed[who.member] > self.schedule.sample_retries or (age and (age > bound / 2 or not ends)):
            seen.late.add(who.member)

    def judge(self, group: int, end: End | None) -> None:
        self.judging.pop(group)
        self.tell(m.Judged(group, end, "" if end is None else f"is_{end}"))

    def trained(self) -> None:
        assert self.training is not None
        self.training = None
        self.tell(m.Trained(self.step))
        self.step, self.behind = self.step + 1, True

    def updated(self) -> None:
        self.version, self.behind = self.step, False
        if self.served_at is not None:
            self.took = [*self.took[-7:], self.now + 1.0 - self.served_at]
        self.served_at = self.now + 1.0
        self.tell(m.Updated(self.version))

    def crash(self, *, keep: bool, schedule: Schedule | None = None) -> None:
        """All processes end; what was saved after the last step is loaded, by a run with another `schedule` maybe."""
        saved = json.loads(json.dumps(self.scheduler.state()))
        again = self.given.pop() if self.training is not None else ()
        for group in again:
            self.counts[self.ends.pop(group)] -= 1
            self.unfinished.add(group)
        self.fresh = 0
        kept = frozenset(self.groups) - self.ends.keys() if keep else frozenset()
        self.running, self.lost, self.judging, self.training, self.behind = {}, {}, {}, None, False
        self.schedule, self.refits = schedule or self.schedule, schedule is not None
        self.scheduler, self.twin = Scheduler(self.schedule, self.prompts), None
        self.scheduler.restore(saved)
        for number, seen in self.groups.items():
            if number not in self.ends and number not in kept:
                seen.again()
        self.version, self.served_at = self.step, None
        self.tell(m.Resumed(self.step, kept))
        self.refits = False

    def fork(self) -> None:
        """From now on a restored scheduler is told the same, and must say the same."""
        deals = Deals(self.prompts.size, self.prompts.at)
        twin = Scheduler(self.schedule, deals)
        twin.restore(json.loads(json.dumps(self.scheduler.state())))
        self.twin = twin, deals

    # ---- commands --------------------------------------------------------------------------------------------------

    def obey(self, command: Command) -> None:
        assert not self.stopped
        match command:
            case m.Start(who, prompt):
                assert who not in self.attempts
                if who.group not in self.groups:
                    self.fresh += 1
                    self.unfinished.add(who.group)
                assert self.groups.setdefault(who.group, Seen(prompt)).prompt == prompt
                assert who.group not in self.ends
                seen = self.groups[who.group]
                seen.begun = self.version if seen.begun is None else seen.begun
                assert not seen.late & {who.member}, "it is too late for another attempt"
                self.attempts.add(who)
                self.running[who], self.since[who] = self.version, self.now
            case m.Judge(group, lost, _):
                assert len(self.groups[group].answers) + lost == self.schedule.rollouts_per_group
                self.judging[group] = lost
            case m.Deliver(step, groups, short):
                self.give(step, groups, short)
            case m.Release(group, end, _):
                self.settle(group, end)
                assert end is not End.UNUSED or self.schedule.gives_up_extra or self.refits
            case m.Renew(group):
                if group in self.groups:
                    self.groups[group].again()
            case m.Cancel(who):
                self.lost[who] = self.running.pop(who)
            case m.Stop(reason):
                self.stopped = reason
                if "kept no group" in reason:
                    assert self.fresh >= self.schedule.refill * self.schedule.groups_per_step, "stops too soon"

    def give(self, step: int, groups: tuple[int, ...], short: str) -> None:
        assert self.training is None
        assert step == self.step
        assert list(groups) == sorted(groups)
        assert bool(short) == (len(groups) < self.schedule.groups_per_step)
        for group in groups:
            self.settle(group, End.TRAINED)
            for version in self.groups[group].answers.values():
                assert step - version <= self.schedule.max_staleness
        self.training, self.fresh = groups, 0
        self.given.append(groups)

    def settle(self, group: int, end: End) -> None:
        assert group not in self.ends
        self.ends[group] = end
        self.unfinished.discard(group)
        self.counts[end] += 1
        self.judging.pop(group, None)

    # ---- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> None:
        accounts = self.scheduler.accounts
        assert {end: getattr(accounts, end) for end in End} == {end: self.counts[end] for end in End}
        assert accounts.started == len(self.ends) + accounts.in_flight
        assert self.scheduler.running == len(self.running)
        assert accounts.in_flight >= len(self.unfinished)
        assert accounts.in_flight <= (self.schedule.max_staleness + 1) * self.schedule.groups_per_step + (
            self.schedule.extra if self.schedule.gives_up_extra else 0
        )

    def batches(self, count: int, budget: int = 100_000) -> None:
        """Let everything come to a good end until so many more batches are trained: it must."""
        goal = len(self.given) + count
        while not self.stopped and (len(self.given) < goal or self.training is not None):
            budget -= 1
            assert budget, "no progress"
            if self.judging:
                self.judge(next(iter(self.judging)), None)
            elif self.training is not None:
                self.trained()
            elif self.behind:
                self.updated()
            elif len(self.given) < goal and not self.wants:
                self.want()
            elif self.running:
                self.end(next(iter(self.running)))
            else:
                raise AssertionError("nothing runs and nothing is given")

    @property
    def wants(self) -> bool:
        return bool(self.scheduler._state.wanted)

    def want(self) -> None:
        self.tell(m.Wanted())
