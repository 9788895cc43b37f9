"""Rollouts of agent workers, several to a call: a call of an actor costs its caller many times what all else does for
a rollout, and as much for one as for many. What starts at once travels together, and so does what ends within a moment.

Invariant: a rollout's samples and its session's turns are objects of their own in Ray's store, owned by who called,
whatever becomes of the worker. One that cannot be brought over is a failed rollout, and no other is touched by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

from ray import ObjectRef, cloudpickle
from ray.exceptions import RayActorError, RayError

from miles_lite.errors import Where, plain
from miles_lite.process.patience import at_most
from miles_lite.process.remote import Remote
from miles_lite.rollout.agent_sampling import Sampling
from miles_lite.rollout.kept import StoredTranscript
from miles_lite.rollout.prompts import Prompt
from miles_lite.rollout.stored import Stored
from miles_lite.sample import Rollout, Sample

MOST = 8
"""Rollouts that one answer brings."""
WAIT_SHARE, WAIT_SECONDS = 0.01, 0.25
"""Of the time that it took, and at most, for which a rollout that has ended waits for others to end."""
LOOK_SECONDS = 60.0
"""Between two looks while none ends."""
JOINING_SECONDS = 0.005
"""For which what is to be said waits for more."""
PARTS = 2
"""Of a rollout: its samples, its turns."""


@dataclass(frozen=True, slots=True)
class Task:
    """One rollout to run: who it is, what it works on, where its session lives and how it samples.

    `evaluation`: its prompt is held out; `keep_transcript`: what its session was told and said is wanted.
    """

    rollout_index: int
    group_index: int
    prompt: Prompt
    session_url: str
    sampling: Sampling
    evaluation: bool = False
    keep_transcript: bool = False
    router_url: str = ""


class Ended(NamedTuple):
    """A rollout that ended: its number, and its record, or why that cannot be brought over."""

    number: int
    record: bytes
    lost: str = ""


Ran = tuple[Rollout, list[Sample], bytes]
Part = list[Sample] | bytes | None
Answer = tuple[list[Ended], *tuple[Part, ...]]
"""Rollouts, and the parts of each in turn; None for those that it has not."""


class Runs(Protocol):
    """An actor that runs rollouts."""

    async def submit(self, tasks: Sequence[Task], dropped: Sequence[int]) -> None:
        """Begin those, and give up these."""

    async def exchange(self, tasks: Sequence[Task], dropped: Sequence[int]) -> Answer:
        """The same; comes back as soon as one has ended."""


class Running:
    """The worker's side of `Runs`, which its actor inherits: rollouts that run, and those that ended and of which
    nobody knows yet."""

    def __init__(self, run: Callable[[Task], Awaitable[Ran]]) -> None:
        self._run_one = run
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ended: deque[tuple[float, Ended, list[Sample], bytes]] = deque()
        """With the time until which each may wait."""
        self._news = asyncio.Event()
        self._asked = 0

    async def submit(self, tasks: Sequence[Task], dropped: Sequence[int]) -> None:
        """Begin those, and give up these, which are not told of."""
        for number in dropped:
            self._drop(number)
        for task in tasks:
            self._drop(task.rollout_index)  # an attempt whose caller lost sight of it
            self._tasks[task.rollout_index] = asyncio.create_task(self._one(task))

    async def exchange(self, tasks: Sequence[Task], dropped: Sequence[int]) -> Answer:
        """The same, and up to MOST of those that ended, once there is one; none, where somebody asks anew meanwhile."""
        await self.submit(tasks, dropped)
        self._asked = asked = self._asked + 1
        self._news.set()
        while asked == self._asked and (left := self._left()) > 0:
            self._news.clear()
            await at_most(min(left, LOOK_SECONDS), self._news.wait())
        taken = [self._ended.popleft() for _ in range(min(MOST, len(self._ended)) if asked == self._asked else 0)]
        parts: tuple[Part, ...] = tuple(part for _, _, samples, turns in taken for part in (samples, turns))
        parts += (None,) * (PARTS * MOST - len(parts))
        return ([told for _, told, _, _ in taken], *parts)

    def _left(self) -> float:
        """Seconds for which those that have ended may wait for more."""
        if len(self._ended) >= MOST:
            return 0.0
        return min((until for until, *_ in self._ended), default=math.inf) - time.monotonic()

    async def _one(self, task: Task) -> None:
        number, began = task.rollout_index, time.monotonic()
        try:
            rollout, samples, turns = await self._run_one(task)
            told = Ended(number, cloudpickle.dumps(rollout))
        except Exception as error:  # noqa: BLE001 - what users' code returned may be anything
            told, samples, turns = Ended(number, b"", f"{type(error).__name__}: {error}"), [], b""
        if self._tasks.get(number) is asyncio.current_task():
            del self._tasks[number]
            now = time.monotonic()
            self._ended.append((now + min(WAIT_SECONDS, WAIT_SHARE * (now - began)), told, samples, turns))
            self._news.set()

    def _drop(self, number: int) -> None:
        if (running := self._tasks.pop(number, None)) is not None:
            running.cancel()


class Line:
    """The caller's side, of one worker: asks it, again and again, what has ended."""

    def __init__(self, worker: Remote[Runs]) -> None:
        self._worker = worker
        self._waiting: dict[int, tuple[Task, asyncio.Future[Rollout]]] = {}
        self._new: dict[int, Task] = {}
        self._dropped: list[int] = []
        self._asking: asyncio.Task[None] | None = None
        self._asked = False
        self._telling: asyncio.Task[None] | None = None

    async def run(self, task: Task) -> Rollout:
        """One attempt at a task. What cannot be brought here is a failed rollout."""
        number, ended = task.rollout_index, asyncio.get_running_loop().create_future()
        self._waiting[number], self._new[number] = (task, ended), task
        self._flush()
        try:
            rollout: Rollout = await ended
            return rollout
        except asyncio.CancelledError:
            self._waiting.pop(number, None)
            if self._new.pop(number, None) is None:
                self._dropped.append(number)
                self._flush()
            raise

    def _flush(self) -> None:
        """Say what there is to say: with the next question, or by itself where that is far."""
        if self._asking is None and self._waiting:
            self._asking = asyncio.create_task(self._poll())
        elif (self._asking is None or self._asked) and self._telling is None:
            self._telling = asyncio.create_task(self._send())

    def _drain(self) -> tuple[list[Task], list[int]]:
        """What there is to say."""
        tasks, dropped = list(self._new.values()), self._dropped
        self._new, self._dropped = {}, []
        return tasks, dropped

    async def _send(self) -> None:
        await asyncio.sleep(JOINING_SECONDS)
        self._telling = None
        tasks, dropped = self._drain()
        if tasks or dropped:
            try:
                with self._no_wait_for_ever():
                    await self._worker.call(Runs.submit, tasks, dropped)
            except RayError as error:
                self._lose([task.rollout_index for task in tasks], error)

    async def _poll(self) -> None:
        with contextlib.ExitStack() as ending:
            ending.callback(self._asked_no_more)
            ending.enter_context(self._no_wait_for_ever())
            while self._waiting:
                await asyncio.sleep(JOINING_SECONDS)  # for what follows from the last answer
                told, parts = self._worker.call_parts(Runs.exchange, PARTS * MOST, *self._drain())
                self._asked = True
                try:
                    self._take(await told, parts)
                except RayError as error:
                    await asyncio.gather(*parts, return_exceptions=True)  # the same, which Ray tells of if unread
                    self._new.clear()
                    self._lose(list(self._waiting), error)
                self._asked = False

    def _asked_no_more(self) -> None:
        self._asking, self._asked = None, False

    @contextlib.contextmanager
    def _no_wait_for_ever(self) -> Iterator[None]:
        """An error that is not the worker's goes to all who wait."""
        try:
            yield
        except RayError:
            raise
        except Exception as error:
            for number in list(self._waiting):
                for _, waits in self._awaited(number):
                    waits.set_exception(error)
            raise

    def _take(self, ended: Sequence[Ended], parts: Sequence[ObjectRef[Part]]) -> None:
        for at, told in enumerate(ended):
            for task, waits in self._awaited(told.number):
                waits.set_result(_assembled(task, told, *parts[PARTS * at : PARTS * (at + 1)]))

    def _lose(self, numbers: Collection[int], error: RayError) -> None:
        """What becomes of those is not known."""
        if isinstance(error, RayActorError):
            why = f"the agent worker died: {error}"
        else:
            why = f"what the agent returned is lost: {type(plain(error)).__name__}: {plain(error)}"
        for number in numbers:
            for task, waits in self._awaited(number):
                waits.set_result(_lost(task, why))

    def _awaited(self, number: int) -> Iterator[tuple[Task, asyncio.Future[Rollout]]]:
        """The rollout of that number, where somebody waits for it: no longer, after this."""
        if number in self._waiting:
            task, waits = self._waiting.pop(number)
            if not waits.done():  # its caller was cancelled a moment ago
                yield task, waits


class Lines:
    """One to each worker."""

    def __init__(self) -> None:
        self._lines: dict[Remote[Runs], Line] = {}

    async def run(self, worker: Remote[Runs], task: Task) -> Rollout:
        """One attempt of `worker` at a task."""
        if worker not in self._lines:
            self._lines[worker] = Line(worker)
        return await self._lines[worker].run(task)


def _assembled(task: Task, told: Ended, samples: ObjectRef[Part], turns: ObjectRef[Part]) -> Rollout:
    """The rollout, with what lies in the store."""
    if told.lost:
        return _lost(task, f"what the agent returned is lost: {told.lost}")
    try:
        rollout: Rollout = pickle.loads(told.record)
    except Exception as error:  # noqa: BLE001 - of a class that only the agent's module has
        return _lost(task, f"what the agent returned is lost: {type(error).__name__}: {error}")
    if rollout.samples:
        rollout.stored = Stored(cast("ObjectRef[Sequence[Sample]]", samples))
    if task.keep_transcript:
        rollout.transcript = StoredTranscript(Stored(cast("ObjectRef[bytes]", turns)), task.prompt)
    return rollout


def _lost(task: Task, why: str) -> Rollout:
    rollout = Rollout(index=task.rollout_index, group_index=task.group_index)
    rollout.fail(Where.AGENT, why)
    rollout.started_at = rollout.finished_at = time.time()
    return rollout
