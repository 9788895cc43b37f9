"""Brings a trainer's weights to running engines bucket by bucket, without a folder in between.

Invariant: an engine that is not among the failures serves the new version, completely; one that is serves the version
it had, or has ended. Nobody is left waiting: a broadcast that one engine refuses is broken off for all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from miles_lite.config.choices import TransferMode
from miles_lite.errors import plain
from miles_lite.weights.bucket import Meeting, memory
from miles_lite.weights.receiver import WeightUpdate

log = logging.getLogger(__name__)


class Server(Protocol):
    """A running engine: its process, how many hold a part of its weights, and where (see `bucket.memory`)."""

    @property
    def pid(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def memory(self) -> str | None: ...


@dataclass(frozen=True)
class Receiver:
    """An engine: its index, its actor and what runs there."""

    index: int
    actor: Any
    info: Server

    @property
    def ranks(self) -> int:
        return self.info.ranks


class WeightSync:
    """One trainer (rank 0's actor handle) and the engines that follow it, in mode tensor or distributed."""

    def __init__(self, mode: TransferMode) -> None:
        self._mode = mode
        self._members: tuple[tuple[int, int], ...] = ()

    async def deliver(self, update: WeightUpdate, sender: Any, receivers: Sequence[Receiver]) -> dict[int, str]:
        """Bring `receivers` to `update`; what failed, by engine index. `sender` holds the buckets of `update`."""
        failures: dict[int, str] = {}
        if self._mode == TransferMode.DISTRIBUTED:
            failures = await self._meet(sender, receivers)
            if failures:
                return failures
        elif self._mode == TransferMode.TENSOR:
            here = await sender.__ray_call__.remote(lambda _: memory())
            failures = {
                one.index: "it does not share the trainer's memory" for one in receivers if one.info.memory != here
            }
            receivers = [one for one in receivers if one.index not in failures]
        began = await self._each(receivers, lambda one: one.actor.begin_update.remote(update), failures)
        try:
            if self._mode == TransferMode.TENSOR:
                await self._share(update, sender, began, failures)
            elif not failures:
                await self._broadcast(update, sender, began, failures)
        finally:
            spoiled = bool(failures) and self._mode == TransferMode.DISTRIBUTED
            commits = {one.index: one.index not in failures and not spoiled for one in began}
            if spoiled:
                await self._part(sender, receivers)
                failures |= {one.index: "another engine failed" for one in began if one.index not in failures}
            ending = self._each(began, lambda one: one.actor.end_update.remote(commit=commits[one.index]), failures)
            await asyncio.shield(ending)
        return failures

    async def _share(
        self, update: WeightUpdate, sender: Any, receivers: Sequence[Receiver], failures: dict[int, str]
    ) -> None:
        """Each rank gets a handle of its own; an engine that fails is left out from then on."""
        for index in range(len(update.buckets)):
            try:
                handles = iter(await sender.share_bucket.remote(index, sum(one.ranks for one in receivers)))
            except ray.exceptions.RayError as error:
                failures |= {one.index: failures.get(one.index) or _words(error) for one in receivers}
                return
            own = {one.index: [next(handles) for _ in range(one.ranks)] for one in receivers}
            loading = [one for one in receivers if one.index not in failures]
            await self._each(loading, lambda one, own=own: one.actor.load_bucket.remote(own[one.index]), failures)

    async def _broadcast(
        self, update: WeightUpdate, sender: Any, receivers: Sequence[Receiver], failures: dict[int, str]
    ) -> None:
        """All or none: the first failure ends it."""
        for index in range(len(update.buckets)):
            calls = {one.index: _settled(one.actor.load_bucket.remote([])) for one in receivers}
            sent = asyncio.ensure_future(_settled(sender.broadcast_bucket.remote(index)))
            loads = {at: asyncio.ensure_future(call) for at, call in calls.items()}
            for done in asyncio.as_completed([sent, *loads.values()]):
                if await done is not None:
                    break
            failed = {at: load.result() for at, load in loads.items() if load.done() and load.result()}
            if failed or (sent.done() and sent.result()):
                await self._part(sender, [one for one in receivers if one.index in failed])
                await asyncio.wait([sent, *loads.values()])
                reason = sent.result() or "another engine failed"
                failures |= {at: failed.get(at) or reason for at in loads}
                return

    async def _meet(self, sender: Any, receivers: Sequence[Receiver]) -> dict[int, str]:
        """One group of the trainer and all receivers, kept for as long as they are the same processes."""
        members = tuple((one.index, one.info.pid) for one in receivers)
        if members == self._members:
            return {}
        self._members = ()
        meeting: Meeting = await sender.open_group.remote(1 + sum(one.ranks for one in receivers))
        rank, joins = 1, []
        for one in receivers:
            joins.append(_settled(one.actor.join_group.remote(meeting, rank)))
            rank += one.ranks
        joined, *others = await asyncio.gather(_settled(sender.join_group.remote()), *joins)
        failures = {one.index: error for one, error in zip(receivers, others, strict=True) if error}
        if joined or failures:
            await self._part(sender, receivers)
            return {one.index: failures.get(one.index) or joined or "another engine failed" for one in receivers}
        self._members = members
        return {}

    async def _part(self, sender: Any, receivers: Iterable[Receiver]) -> None:
        """Break the group up: who still waits in it gets an error."""
        self._members = ()
        leaving = [_settled(one.actor.leave_group.remote()) for one in receivers]
        await asyncio.gather(*leaving, _settled(sender.close_group.remote()))

    async def _each(self, receivers: Sequence[Receiver], call: Any, failures: dict[int, str]) -> list[Receiver]:
        """Make one call on each; notes what failed and returns the others."""
        errors = await asyncio.gather(*(_settled(call(one)) for one in receivers))
        failures |= {one.index: error for one, error in zip(receivers, errors, strict=True) if error is not None}
        return [one for one, error in zip(receivers, errors, strict=True) if error is None]


async def _settled(call: Awaitable[Any]) -> str | None:
    """None when `call` succeeded, else what it failed with."""
    try:
        await call
    except ray.exceptions.RayError as error:
        return _words(error)
    return None


def _words(error: ray.exceptions.RayError) -> str:
    return str(plain(error)) or type(error).__name__
