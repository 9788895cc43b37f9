"""The simulated driver: a heap of events on a virtual clock around the scheduler that drives a run.

Invariant: the scheduler is told what a run would tell it, when it would, and nothing else; staleness, discards and busy
time are measured here, of rollouts and machines, not taken from the scheduler's word.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.concurrency import LOOK_SECONDS, Concurrency, Look
from miles_lite.scheduler.protocol import Command, Event, Who
from miles_lite.simulation.engine import NEVER, Engine, Turn
from miles_lite.simulation.scenario import Scenario
from miles_lite.simulation.workload import Work, Workload

TICK = LOOK_SECONDS
SHOWN = 8
"""Engines that are remembered one by one, for the picture."""


class Schedules(Protocol):
    """A scheduler, or what stands beside it in a comparison."""

    def on(self, event: Event, now: float) -> list[Command]: ...


@dataclass(eq=False, slots=True)
class Session:
    """A running rollout."""

    who: Who
    work: Work
    engine: int
    version: int
    """The engine's when it started."""
    context: float
    turn: int = 0
    cached: float = 0.0
    at: Turn | None = None
    """What its engine is busy with; None while a tool runs."""


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
        self.engines = [Engine(scenario.engine) for _ in range(scenario.engines)]
        self._wakes = [0] * scenario.engines
        self._open = [0] * scenario.engines
        self._least = [(0, engine) for engine in range(scenario.engines)]
        self._heap: list[tuple[float, int, Callable[..., None], Any]] = []
        self._order = itertools.count()
        self._sessions: dict[Who, Session] = {}
        self._answers: dict[int, tuple[float, int, int]] = {}
        """Of open groups: tokens, the oldest version, the sum of versions."""
        self._version = 0
        self._now = 0.0
        self.out = Outcome()

    def run(self) -> Outcome:
        """Until the last step is trained, or the scheduler stops."""
        self._at(TICK, self._tick, None)
        self._tell(m.Wanted())
        while len(self.out.steps) < self.scenario.steps or not self.out.steps[-1].ended:
            if self.out.stopped:
                break
            self._now, _, what, about = heapq.heappop(self._heap)
            what(about)
        self.out.seconds = self._now
        self.out.preemptions = sum(engine.preemptions for engine in self.engines)
        return self.out

    # ---- the scheduler's commands ------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        pending: list[Event] = [event]
        while pending:
            self.out.events += 1
            pending += self._obey(self._scheduler.on(pending.pop(0), self._now))

    def _obey(self, commands: Iterable[Command]) -> list[Event]:
        told: list[Event] = []
        for command in commands:
            match command:
                case m.Start():
                    self._start(command.who)
                case m.Judge(group=group, lost=lost):
                    self.out.lost += lost
                    all_lost = lost == self.scenario.schedule.n_samples_per_prompt
                    told.append(m.Judged(group, m.End.FAILED if all_lost else None, "failed" if all_lost else ""))
                case m.Give():
                    self._train(command)
                case m.Release(group=group, end=end):
                    self._answers.pop(group, None)
                    self.out.released[end] = self.out.released.get(end, 0) + 1
                case m.Cancel(who=who):
                    self._cancel(who)
                case m.Stop(reason=reason):
                    self.out.stopped = reason
        return told

    def _start(self, who: Who) -> None:
        count, engine = heapq.heappop(self._least)
        while count != self._open[engine]:
            count, engine = heapq.heappop(self._least)
        self._count(engine, 1)
        work = self._workload.of(*who)
        session = Session(who, work, engine, self._version, context=self.scenario.task.prompt)
        self._sessions[who] = session
        self._ask(session)

    def _count(self, engine: int, more: int) -> None:
        self._open[engine] += more
        heapq.heappush(self._least, (self._open[engine], engine))

    def _cancel(self, who: Who) -> None:
        session = self._sessions.pop(who)
        engine = self._reach(session.engine)
        if session.at is not None:
            engine.cancel(session.at)
        else:
            engine.forget(session.cached)
        self._count(session.engine, -1)
        self._wake(session.engine)

    def _train(self, given: m.Give) -> None:
        answers = [self._answers.pop(group) for group in given.groups]
        members = self.scenario.schedule.n_samples_per_prompt * len(answers)
        step = Step(
            began=self._now,
            tokens=sum(tokens for tokens, _, _ in answers),
            staleness=given.step - min(oldest for _, oldest, _ in answers),
            mean_staleness=given.step - sum(versions for _, _, versions in answers) / members,
        )
        self.out.steps.append(step)
        trainer = self.scenario.trainer
        self._at(trainer.fixed + step.tokens / trainer.tokens_per_second, self._trained, given.step)

    # ---- what happens ------------------------------------------------------------------------------------------

    def _at(self, seconds: float, what: Callable[..., None], about: object) -> None:
        heapq.heappush(self._heap, (self._now + seconds, next(self._order), what, about))

    def _reach(self, number: int) -> Engine:
        engine = self.engines[number]
        engine.advance(self._now)
        return engine

    def _wake(self, number: int) -> None:
        """Come back when the engine has something to tell."""
        self._wakes[number] += 1
        when = self.engines[number].next_event()
        if when < NEVER:
            entry = (when, next(self._order), self._engine, (number, self._wakes[number]))
            heapq.heappush(self._heap, entry)

    def _ask(self, session: Session) -> None:
        turn = Turn(hash(session.who), session.context, session.cached, session.work.decode[session.turn])
        session.at = turn
        turn.session = session
        self._reach(session.engine).submit(turn)
        self._wake(session.engine)

    def _engine(self, about: tuple[int, int]) -> None:
        number, wake = about
        if wake != self._wakes[number]:
            return
        ended = self._reach(number).finish()
        self._wake(number)
        for turn in ended:
            self._turn_ended(turn.session, turn.context + turn.decode)

    def _turn_ended(self, session: Session, context: float) -> None:
        work = session.work
        session.at, session.context, session.cached = None, context, context
        if work.fails_after == session.turn:
            self._at(work.tools[session.turn], self._broke, session)
        elif session.turn + 1 == len(work.decode):
            self._answered(session)
        else:
            self._at(work.tools[session.turn], self._tool_answered, session)

    def _tool_answered(self, session: Session) -> None:
        if self._sessions.get(session.who) is session:
            session.turn += 1
            session.context += self.scenario.task.observation
            self._ask(session)

    def _broke(self, session: Session) -> None:
        if self._sessions.get(session.who) is session:
            self.out.failed += 1
            self._end(session)
            self._tell(m.Finished(session.who, failed="environment", why="simulated"))

    def _answered(self, session: Session) -> None:
        self._end(session)
        tokens, oldest, versions = self._answers.get(session.who.group, (0.0, session.version, 0))
        self._answers[session.who.group] = (
            tokens + session.context,
            min(oldest, session.version),
            versions + session.version,
        )
        self._tell(m.Finished(session.who, length=int(sum(session.work.decode))))

    def _end(self, session: Session) -> None:
        del self._sessions[session.who]
        self.engines[session.engine].forget(session.cached)
        self._count(session.engine, -1)

    def _trained(self, step: int) -> None:
        self.out.steps[-1].ended = self._now
        self._tell(m.Trained(step))
        self._at(self.scenario.trainer.sync - self.scenario.trainer.pause, self._pause, step)

    def _pause(self, step: int) -> None:
        """Engines stand still; what they hold after that is of the new version."""
        trainer = self.scenario.trainer
        for number in range(len(self.engines)):
            self._reach(number).pause(trainer.pause, keep_cache=trainer.mode == "in_place")
            self._wake(number)
        self._at(trainer.pause, self._updated, step + 1)

    def _updated(self, version: int) -> None:
        self._version = version
        self.out.steps[-1].synced = self._now
        self._tell(m.Updated(version))
        self._tell(m.Wanted())

    def _look(self) -> Look:
        before, self.out.preemptions = self.out.preemptions, sum(engine.preemptions for engine in self.engines)
        return Look(
            kv_use=sum(engine.kv_use for engine in self.engines) / len(self.engines),
            queued=sum(len(engine.waiting) for engine in self.engines),
            preempted=self.out.preemptions - before,
            running=len(self._sessions),
        )

    def _tick(self, _: None) -> None:
        busy = []
        for number in range(len(self.engines)):
            engine = self._reach(number)
            busy.append(engine.busy / TICK)
            engine.busy = 0.0
            self._wake(number)
        shown = tuple(busy[:SHOWN])
        self.out.ticks.append(Tick(self._now, sum(busy) / len(busy), len(self._sessions), shown))
        if self._concurrency is not None:
            self._tell(m.Capacity(self._concurrency.see(self._look())))
        self._tell(m.Tick())
        self._at(TICK, self._tick, None)
