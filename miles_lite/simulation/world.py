"""The simulated driver: a virtual clock around the scheduler that drives a run.

The fleet moves in pulses: what ended on the engines since the last one is told together, and what starts for it
arrives then; between two pulses each engine goes on by itself. The trainer and weight updates come at their own time.

Invariant: the scheduler is told what a run would tell it, when it would, and nothing else; staleness, discards and busy
time are measured here, of rollouts and machines, not taken from the scheduler's word.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.concurrency import LOOK_SECONDS, Concurrency, EngineLoad
from miles_lite.scheduler.protocol import AttemptId, Command, Event
from miles_lite.simulation.host import Ended, Host, Session
from miles_lite.simulation.scenario import Scenario
from miles_lite.simulation.workload import Workload

TICK = LOOK_SECONDS
PULSE = 0.125
"""Seconds for which a rollout that has ended waits for others at most; in a run, 1 % of its time up to 0.25 s."""
SHOWN = 8
"""Engines that are remembered one by one, for the picture."""


class Schedules(Protocol):
    """A scheduler, or what stands beside it in a comparison."""

    def on(self, event: Event, now: float) -> list[Command]: ...


@dataclass(slots=True)
class Answers:
    """Of a group, whose members began at `oldest` or later."""

    oldest: int
    members: int = 0
    tokens: float = 0.0
    versions: int = 0
    """Their sum."""


@dataclass(slots=True)
class Step:
    """A batch: when the trainer had it, and how old it was."""

    began: float
    tokens: float
    staleness: int
    """The oldest token's, in versions."""
    mean_staleness: float
    ended: float = 0.0
    synced: float = 0.0


class Tick(NamedTuple):
    """What the fleet did since the last one: `busy` is the share of its full speed, by engine in `engines`."""

    at: float
    busy: float
    rollouts: int
    engines: tuple[float, ...]


@dataclass(slots=True)
class Outcome:
    """What was seen."""

    steps: list[Step] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    seconds: float = 0.0
    released: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    failed: int = 0
    lost: int = 0
    events: int = 0
    stopped: str = ""


class World:
    """Runs `scenario` under `scheduler` until its steps are trained."""

    def __init__(self, scenario: Scenario, scheduler: Schedules, *, concurrency: Concurrency | None = None) -> None:
        """`concurrency` says at each tick how many rollouts may run at once."""
        schedule = scenario.schedule
        self.scenario, self._scheduler, self._concurrency = scenario, scheduler, concurrency
        self._workload = Workload(scenario.task, members=schedule.n_samples_per_prompt, seed=scenario.seed)
        self.hosts = [Host(scenario.engine, observation=scenario.task.observation) for _ in range(scenario.engines)]
        self._open = [0] * scenario.engines
        self._least = [(0, engine) for engine in range(scenario.engines)]
        self._heap: list[tuple[float, int, Callable[..., None], Any]] = []
        self._order = itertools.count()
        self._running = 0
        self._answers: dict[int, Answers] = {}
        """Of open groups."""
        self._version = 0
        self._now = 0.0
        self.out = Outcome()

    def run(self) -> Outcome:
        """Until the last step is trained, or the scheduler stops."""
        self._at(TICK, self._tick, None)
        self._dispatch(m.Wanted())
        while len(self.out.steps) < self.scenario.steps or not self.out.steps[-1].ended:
            if self.out.stopped:
                break
            soonest, when = min(host.due for host in self.hosts), self._heap[0][0]
            if soonest < when and (pulse := PULSE * math.ceil(soonest / PULSE)) < when:
                self._pulse(pulse)
            else:
                _, _, what, about = heapq.heappop(self._heap)
                self._pulse(when)
                what(about)
        self.out.seconds = self._now
        self.out.preemptions = self._preemptions()
        return self.out

    # ---- the scheduler's commands ------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        pending: list[Event] = [event]
        while pending:
            self.out.events += 1
            pending += self._execute(self._scheduler.on(pending.pop(0), self._now))

    def _execute(self, commands: Iterable[Command]) -> list[Event]:
        told: list[Event] = []
        for command in commands:
            match command:
                case m.Start():
                    self._start(command.who)
                case m.Judge(group=group, lost=lost):
                    self.out.lost += lost
                    all_lost = lost == self.scenario.schedule.n_samples_per_prompt
                    told.append(m.Judged(group, m.End.FAILED if all_lost else None, "failed" if all_lost else ""))
                case m.Deliver():
                    self._train(command)
                case m.Release(group=group, end=end):
                    self._answers.pop(group, None)
                    self.out.released[end] = self.out.released.get(end, 0) + 1
                case m.Stop(reason=reason):
                    self.out.stopped = reason
                case _:
                    raise AssertionError(f"nothing that is simulated leads to {command}")
        return told

    def _start(self, who: AttemptId) -> None:
        count, number = heapq.heappop(self._least)
        while count != self._open[number]:
            count, number = heapq.heappop(self._least)
        self._count(number, 1)
        work, prompt = self._workload.of(*who), self.scenario.task.prompt
        session = Session(prompt, 0.0, work.decode[0], who=who, work=work, host=number, version=self._version)
        self.hosts[number].start(session, self._now)

    def _count(self, number: int, more: int) -> None:
        self._running += more
        self._open[number] += more
        heapq.heappush(self._least, (self._open[number], number))

    def _train(self, given: m.Deliver) -> None:
        answers = [self._answers.pop(group) for group in given.groups]
        members = sum(answer.members for answer in answers)
        step = Step(
            began=self._now,
            tokens=sum(answer.tokens for answer in answers),
            staleness=given.step - min(answer.oldest for answer in answers),
            mean_staleness=given.step - sum(answer.versions for answer in answers) / members,
        )
        self.out.steps.append(step)
        trainer = self.scenario.trainer
        self._at(trainer.fixed + step.tokens / trainer.tokens_per_second, self._trained, given.step)

    # ---- what happens ------------------------------------------------------------------------------------------

    def _at(self, seconds: float, what: Callable[..., None], about: object) -> None:
        heapq.heappush(self._heap, (self._now + seconds, next(self._order), what, about))

    def _pulse(self, now: float) -> None:
        """Engines go on until now; the scheduler is told what ended."""
        self._now = now
        ended: list[Ended] = []
        for host in self.hosts:
            if host.due <= now:
                ended += host.run(now)
        for _, session in sorted(ended, key=lambda one: one[0]):
            self._count(session.host, -1)
            if session.broke:
                self.out.failed += 1
                self._dispatch(m.Finished(session.who, failed="environment", why="simulated"))
            else:
                self._answered(session)

    def _answered(self, session: Session) -> None:
        answers = self._answers.setdefault(session.who.group, Answers(session.version))
        answers.oldest = min(answers.oldest, session.version)
        answers.members += 1
        answers.tokens += session.context
        answers.versions += session.version
        self._dispatch(m.Finished(session.who, length=int(session.work.tokens)))

    def _trained(self, step: int) -> None:
        self.out.steps[-1].ended = self._now
        self._dispatch(m.Trained(step))
        self._at(self.scenario.trainer.sync - self.scenario.trainer.pause, self._pause, step)

    def _pause(self, step: int) -> None:
        """Engines stand still; what they hold after that is of the new version."""
        trainer = self.scenario.trainer
        for host in self.hosts:
            host.pause(self._now, trainer.pause, keep_cache=trainer.mode == "in_place")
        self._at(trainer.pause, self._updated, step + 1)

    def _updated(self, version: int) -> None:
        self._version = version
        self.out.steps[-1].synced = self._now
        self._dispatch(m.Updated(version))
        self._dispatch(m.Wanted())

    def _preemptions(self) -> int:
        return sum(host.engine.preemptions for host in self.hosts)

    def _engine_load(self) -> EngineLoad:
        before, self.out.preemptions = self.out.preemptions, self._preemptions()
        return EngineLoad(
            kv_use=fmean(host.engine.kv_use for host in self.hosts),
            queued=sum(len(host.engine.waiting) for host in self.hosts),
            preempted=self.out.preemptions - before,
            running=self._running,
        )

    def _tick(self, _: None) -> None:
        busy = [host.take_busy(self._now) / TICK for host in self.hosts]
        self.out.ticks.append(Tick(self._now, fmean(busy), self._running, tuple(busy[:SHOWN])))
        if self._concurrency is not None:
            self._dispatch(m.Capacity(self._concurrency.update(self._engine_load())))
        self._dispatch(m.Tick())
        self._at(TICK, self._tick, None)
