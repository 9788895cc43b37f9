"""Weights through memory that the trainer and engines of its machine share.

Invariant: while engines load a bucket, the trainer makes the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial

from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Engine, Failures, Receiver, Trainer, each, settled, taking


class SharedMemory:
    """Each rank of an engine gets a handle of its own; an engine that fails is left out from then on."""

    async def deliver(
        self, update: WeightUpdate, trainer: Remote[Trainer] | None, receivers: Sequence[Receiver[Engine]]
    ) -> Failures:
        assert trainer is not None, "somebody holds the buckets"
        here = await trainer.call(Trainer.memory)
        failures = {one.index: "it does not share the trainer's memory" for one in receivers if one.info.memory != here}
        near = [one for one in receivers if one.index not in failures]
        async with taking(update, near, failures) as waiting:
            await _share(len(update.buckets), trainer, waiting, failures)
        return failures


async def _share(
    buckets: int, trainer: Remote[Trainer], receivers: Sequence[Receiver[Engine]], failures: Failures
) -> None:
    copies = sum(one.ranks for one in receivers)
    shared = trainer.call(Trainer.share_bucket, 0, copies)
    for index in range(buckets):
        if (error := await settled(shared)) is not None:
            failures |= {one.index: error for one in receivers if one.index not in failures}
            return
        handles = iter(await shared)
        own = {one.index: list(itertools.islice(handles, one.ranks)) for one in receivers}
        if index + 1 < buckets:
            shared = trainer.call(Trainer.share_bucket, index + 1, copies)
        loading = [one for one in receivers if one.index not in failures]
        failures |= await each(loading, partial(_load, own))


def _load(handles: Mapping[int, list[bytes]], one: Receiver[Engine]) -> Awaitable[None]:
    return one.actor.call(Engine.load_bucket, handles[one.index])
