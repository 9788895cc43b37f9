"""Brings a trainer's weights to running engines: who takes part, what is done, what every transport does alike.

Invariant: one change at a time. An engine that is not among the failures serves the new version, completely; one that
is serves the version it had, or has ended. Nobody is left waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import ray

from miles_lite.errors import plain, user_error
from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import Meeting, WeightUpdate
from miles_lite.weights.fits import WeightsError
from miles_lite.weights.receiver import EngineError

log = logging.getLogger(__name__)

Failures = dict[int, str]
"""Why engines did not take an update, by their index."""


class Trainer(Protocol):
    """The actor that holds the buckets of an update: the trainer's rank 0. See `sending_actor.SendingActor`."""

    def memory(self) -> str: ...
    def prepare_bucket(self, index: int) -> None: ...
    def share_bucket(self, index: int, copies: int) -> list[bytes]: ...
    def broadcast_bucket(self, index: int) -> None: ...
    def open_group(self, world_size: int) -> Meeting: ...
    def join_group(self) -> None: ...
    def close_group(self) -> None: ...


class Engine(Protocol):
    """An engine's actor, as far as weights go. See `engine.actor.EngineActor`."""

    async def update_weights(self, update: WeightUpdate) -> float: ...
    async def begin_update(self, update: WeightUpdate) -> None: ...
    async def load_bucket(self, shared: list[bytes]) -> None: ...
    async def end_update(self, *, commit: bool) -> float: ...
    async def join_group(self, meeting: Meeting, first_rank: int) -> None: ...
    async def leave_group(self) -> None: ...
    async def verify_weights(self) -> int: ...
    async def offload(self) -> None: ...
    async def onload(self) -> None: ...


class Server(Protocol):
    """A running engine: its process, how many hold a part of its weights, and where (see `bucket.memory`)."""

    @property
    def pid(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def memory(self) -> str | None: ...


E_co = TypeVar("E_co", bound=Engine, covariant=True)
E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Receiver(Generic[E_co]):
    """An engine: its index, its actor and what runs there."""

    index: int
    actor: Remote[E_co]
    info: Server

    @property
    def ranks(self) -> int:
        return self.info.ranks


class Transport(Protocol):
    """One way of weights. It may keep what outlives an update, such as connections."""

    async def deliver(
        self, update: WeightUpdate, trainer: Remote[Trainer] | None, receivers: Sequence[Receiver[Engine]]
    ) -> Failures:
        """Bring `receivers` to `update`; who failed. `trainer` holds its buckets, where it comes in buckets."""


@dataclass(frozen=True)
class Delivered:
    """How a weight update went: seconds, pause included, and the engines that did not take it, with the reason."""

    seconds: float
    behind: Failures


class DeliveringActor(ABC, Generic[E]):
    """The actor that has the engines, as far as weights go."""

    def __init__(self, weights: WeightUpdate, *, stream: Transport, disk: Transport) -> None:
        """Engines start with `weights`. Updates that have buckets go by `stream`, the others by `disk`."""
        self._weights = weights
        self._stream, self._disk = stream, disk
        self._changing = asyncio.Lock()

    @abstractmethod
    def _serving(self) -> Sequence[Receiver[E]]:
        """The engines there are now."""

    @abstractmethod
    async def _end(self, failures: Failures) -> None:
        """End engines that are in no known state; others start in their place, from the current weights."""

    @abstractmethod
    async def _admit(self, version: int, *, previous: int | None = None) -> Sequence[str]:
        """From now on requests go to engines that serve `version` or `previous`. The engines that serve neither."""

    async def update_weights(self, update: WeightUpdate, trainer: Remote[Trainer] | None = None) -> Delivered:
        """Bring every engine to `update`.

        Without buckets the engines load its folder; one that refuses is ended, and replaced by one that starts from it.
        With buckets they get them from `trainer`; those that could not take them serve what they served before and are
        named in the answer.
        """
        async with self._changing:
            began, before = time.perf_counter(), self._weights
            await self._admit(update.version, previous=before.version)
            serving, behind = self._serving(), Failures()
            if update.buckets:
                behind = await self._stream.deliver(update, trainer, serving)
                self._weights = before if serving and len(behind) == len(serving) else update
            else:
                self._weights = update
                await self._end(await self._disk.deliver(update, None, serving))
            if not behind:
                for url in await self._admit(update.version):
                    log.warning("engine %s does not have version %d: it gets no requests", url, update.version)
            return Delivered(time.perf_counter() - began, behind)

    async def verify_weights(self) -> None:
        """Compare what every engine serves with the folder of its version. Raises UserError naming what differs."""
        async with self._changing:
            checking = [one.actor.call(Engine.verify_weights) for one in self._serving()]
            with user_error("--check-weight-update-equal", WeightsError):
                counts = await asyncio.gather(*checking)
            log.info("version %d: %s tensors equal on each engine", self._weights.version, counts)

    async def offload(self) -> None:
        """Free the engines' memory until `onload`. An engine that cannot is ended, and replaced later."""
        async with self._changing:
            await self._end(await each(self._serving(), lambda one: one.actor.call(Engine.offload)))

    async def onload(self) -> None:
        """Take the memory back."""
        async with self._changing:
            await self._end(await each(self._serving(), lambda one: one.actor.call(Engine.onload)))


@contextlib.asynccontextmanager
async def taking(
    update: WeightUpdate, receivers: Sequence[Receiver[Engine]], failures: Failures
) -> AsyncIterator[list[Receiver[Engine]]]:
    """Those of `receivers` that wait for the buckets of `update`. After the block those that are among `failures`, or
    did not get every bucket, serve what they served before; the others the update. Failures are added."""
    failures |= await each(receivers, lambda one: one.actor.call(Engine.begin_update, update))
    waiting = [one for one in receivers if one.index not in failures]
    try:
        yield waiting
    finally:
        committed = {one.index: one.index not in failures for one in waiting}
        ending = each(waiting, lambda one: one.actor.call(Engine.end_update, commit=committed[one.index]))
        failures |= await asyncio.shield(ending)


async def each(receivers: Iterable[Receiver[E]], call: Callable[[Receiver[E]], Awaitable[object]]) -> Failures:
    """Make one call on each, all at once; who failed."""
    asked = list(receivers)
    errors = await asyncio.gather(*(settled(call(one)) for one in asked))
    return {one.index: error for one, error in zip(asked, errors, strict=True) if error is not None}


async def settled(call: Awaitable[object]) -> str | None:
    """None when `call` succeeded, else what it failed with."""
    try:
        await call
    except (EngineError, WeightsError, ray.exceptions.RayError) as error:
        return str(plain(error)) or type(error).__name__
    return None
