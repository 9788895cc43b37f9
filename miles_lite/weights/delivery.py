"""Brings a trainer's weights to running engines: who takes part, and what every transport does alike.

Invariant: an engine that is not among the failures serves the new version, completely; one that is serves the version
it had, or has ended. Nobody is left waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import ray

from miles_lite.errors import plain
from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import Meeting
from miles_lite.weights.fits import WeightsError
from miles_lite.weights.receiver import EngineError, WeightUpdate

Failures = dict[int, str]
"""Why engines did not take an update, by their index."""


class Trainer(Protocol):
    """The actor that holds the buckets of an update: the trainer's rank 0. See `sender.SendingActor`."""

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
