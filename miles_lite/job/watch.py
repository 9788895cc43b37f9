"""What the driver looks at while it waits: whether to stop, who has died, what its servers have to say.

Invariant: every wait of a run looks several times a second, and ends with the first of: the answer, its own bound, the
wish to stop, the death of a process that the run cannot do without.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from miles_lite.errors import plain
from miles_lite.process.heartbeat import Pulse, death
from miles_lite.process.patience import Patience
from miles_lite.process.post_mortem import DiedError
from miles_lite.process.remote import Remote
from miles_lite.process.stacks import write_stacks
from miles_lite.process.standing import processes
from miles_lite.process.stopping import Interrupts
from miles_lite.train.group import RankDiedError, TrainError

log = logging.getLogger(__name__)

R = TypeVar("R")

SLICE_SECONDS = 0.2
ALARM_SECONDS = 1.0
ASK_SECONDS = 1.0
"""How long those who live have to say so once somebody is dead."""
FINISH_SECONDS = 6.0
DEATH_SECONDS = 5.0
"""How long after what a death did to others the death itself may be noticed."""


def _nothing() -> None:
    """It was said."""


class OvertimeError(Exception):
    """What was given `Watch.at_most` so many seconds took longer."""


def death_in(error: BaseException | None) -> DiedError | None:
    """The death that `error` tells of: a call to a dead actor fails, maybe before anybody looked."""
    if isinstance(error, RankDiedError):
        return DiedError(f"train rank {error.rank}", error.error)
    if isinstance(error, RayTaskError) and isinstance(cause := plain(error), RayActorError):
        return DiedError("an actor of the rollout manager", cause)
    if isinstance(error, RayActorError):
        return DiedError("the rollout manager", error)
    told = None if error is None else plain(error)
    return told if isinstance(told, DiedError) else None


class Watch:
    """Looks, and waits."""

    def __init__(self, interrupts: Interrupts, *, hint: str, notify: Callable[[str], None] = log.warning) -> None:
        """`hint` ends the message of a wait that takes too long; `notify` is told at half of it."""
        self._interrupts, self._hint, self.notify = interrupts, hint, notify
        self._pulses: dict[str, Pulse] = {}
        self._deadline: float | None = None
        self._say_finishing: Callable[[], None] | None = None
        self.hears: list[Callable[[], None]] = []
        """Called at each look."""

    def follow(self, name: str, actor: Remote[object]) -> None:
        """The run ends when `actor` dies. One that dies with another is followed after it."""
        self._pulses[name] = Pulse(actor)

    def follow_all(self, name: str, actors: Sequence[Remote[object]]) -> None:
        """The same for each, by number."""
        for index, actor in enumerate(actors):
            self.follow(f"{name} {index}", actor)

    def check(self) -> None:
        """Raises KeyboardInterrupt, OvertimeError or DiedError when there is something to see."""
        if self._deadline is None:
            if not self._finishes():
                self._interrupts.check()
        elif time.monotonic() > self._deadline:
            raise OvertimeError
        if (died := self._died()) is not None:
            raise died
        for hear in self.hears:
            hear()

    def death_behind(self, error: BaseException | None) -> DiedError | None:
        """Who has died where a rank failed: it lost its neighbour."""
        deadline = time.monotonic() + DEATH_SECONDS
        while isinstance(error, TrainError) and time.monotonic() < deadline:
            if (died := self._died()) is not None:
                return died
            time.sleep(SLICE_SECONDS)
        return None

    def _died(self) -> DiedError | None:
        for name, pulse in self._pulses.items():
            if (error := pulse.lost()) is not None:
                return self._first_death() or DiedError(name, error)
        return None

    def write_stacks(self, folder: Path) -> None:
        """What this job's actors are at, those of this node, what they started, and this process."""
        written = write_stacks(folder, processes(), own="driver")
        self.notify(f"what {', '.join(path.stem for path in written)} were at is in {folder}")

    def _first_death(self) -> DiedError | None:
        """Of those that are followed, the first that is dead."""
        asked = {name: pulse.actor.ready() for name, pulse in self._pulses.items()}
        there, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ASK_SECONDS)
        deaths = ((name, death(answer)) for name, answer in asked.items() if answer in there)
        return next((DiedError(name, error) for name, error in deaths if error is not None), None)

    @contextlib.contextmanager
    def finishing(self, notify: Callable[[], None]) -> Iterator[None]:
        """Waits in the block go on after the first wish to stop, of which `notify` tells; they end with the second, and
        FINISH_SECONDS after SIGTERM, which is sent once."""
        self._say_finishing = notify
        try:
            yield
        finally:
            self._say_finishing = None

    def _finishes(self) -> bool:
        if self._say_finishing is None or not self._interrupts.postponed(FINISH_SECONDS):
            return False
        notify, self._say_finishing = self._say_finishing, _nothing
        notify()
        return True

    @contextlib.contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Waits in the block end with OvertimeError after `seconds`, and not with the wish to stop."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    def until(self, ref: ObjectRef[R], seconds: float) -> bool:
        """Look, then wait for `ref` so long; whether it is there."""
        self.check()
        return bool(ray.wait([ref], timeout=seconds)[0])

    def wait(self, ref: ObjectRef[R], what: str, timeout: float) -> R:
        """The value of `ref`. Raises what `check` raises and what the call raised, and UnavailableError."""
        patience = Patience(what, timeout, self.notify)
        while not self.until(ref, SLICE_SECONDS):
            if patience.over():
                raise patience.ended(self._hint)
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise self._first_death() or error from None


class Alarms:
    """Passes on what `ask` is answered, the lines said so far, to `notify`, each once. It never waits for it."""

    def __init__(self, ask: Callable[[], ObjectRef[list[str]]], notify: Callable[[str], None]) -> None:
        self._ask, self._notify = ask, notify
        self._heard = 0
        self._next = 0.0
        self._asked: ObjectRef[list[str]] | None = None

    def __call__(self) -> None:
        if self._asked is None:
            if time.monotonic() > self._next:
                self._asked = self._ask()
            return
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked, self._next = self._asked, None, time.monotonic() + ALARM_SECONDS
        with contextlib.suppress(ray.exceptions.RayError):
            lines = ray.get(asked)
            for line in lines[self._heard :]:
                self._notify(line)
            self._heard = len(lines)
