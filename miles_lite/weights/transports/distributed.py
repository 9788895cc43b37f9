"""Weights by broadcast in a process group of the trainer's rank 0 and the ranks of all engines.

Invariant: all engines take an update or none does; a broadcast that one engine refuses is broken off for all. While
engines load a bucket, the trainer makes the next.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence

from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Engine, Failures, Receiver, Trainer, each, settled, taking

_OTHER = "another engine failed"


class Distributed:
    """The group is kept from update to update, for as long as its members are the same processes."""

    def __init__(self) -> None:
        self._members: tuple[tuple[int, int], ...] = ()

    async def deliver(
        self, update: WeightUpdate, trainer: Remote[Trainer] | None, receivers: Sequence[Receiver[Engine]]
    ) -> Failures:
        assert trainer is not None, "somebody holds the buckets"
        if failures := await self._meet(trainer, receivers):
            return failures
        async with taking(update, receivers, failures) as waiting:
            if not failures:
                await self._broadcast(len(update.buckets), trainer, waiting, failures)
            if failures:
                await self._part(trainer, receivers)
                failures |= {one.index: _OTHER for one in waiting if one.index not in failures}
        return failures

    async def _broadcast(
        self, buckets: int, trainer: Remote[Trainer], receivers: Sequence[Receiver[Engine]], failures: Failures
    ) -> None:
        """The first failure ends it."""
        for index in range(buckets):
            loads = {
                one.index: asyncio.ensure_future(settled(one.actor.call(Engine.load_bucket, []))) for one in receivers
            }
            sent = asyncio.ensure_future(settled(trainer.call(Trainer.broadcast_bucket, index)))
            following = min(index + 1, buckets - 1)
            prepared = asyncio.ensure_future(settled(trainer.call(Trainer.prepare_bucket, following)))
            for done in asyncio.as_completed([sent, *loads.values()]):
                if await done is not None:
                    break
            failed = {at: error for at, load in loads.items() if load.done() and (error := load.result())}
            if failed or (sent.done() and sent.result()):
                await self._part(trainer, [one for one in receivers if one.index in failed])
                await asyncio.wait([sent, prepared, *loads.values()])
                failures |= {at: failed.get(at) or sent.result() or _OTHER for at in loads}
                return

    async def _meet(self, trainer: Remote[Trainer], receivers: Sequence[Receiver[Engine]]) -> Failures:
        """Open a group of the trainer and all receivers, unless there is one."""
        members = tuple((one.index, one.info.pid) for one in receivers)
        if members == self._members:
            return {}
        self._members = ()
        meeting = await trainer.call(Trainer.open_group, 1 + sum(one.ranks for one in receivers))
        ranks = itertools.accumulate((one.ranks for one in receivers), initial=1)
        first = dict(zip((one.index for one in receivers), ranks, strict=False))
        joining = each(receivers, lambda one: one.actor.call(Engine.join_group, meeting, first[one.index]))
        joined, failures = await asyncio.gather(settled(trainer.call(Trainer.join_group)), joining)
        if joined or failures:
            await self._part(trainer, receivers)
            return {one.index: failures.get(one.index) or joined or _OTHER for one in receivers}
        self._members = members
        return {}

    async def _part(self, trainer: Remote[Trainer], receivers: Iterable[Receiver[Engine]]) -> None:
        """Break the group up: who still waits in it gets an error."""
        self._members = ()
        leaving = each(receivers, lambda one: one.actor.call(Engine.leave_group))
        await asyncio.gather(leaving, settled(trainer.call(Trainer.close_group)))
