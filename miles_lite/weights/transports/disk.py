"""Weights through a folder that trainer and engines see."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Engine, Failures, Receiver, Trainer, each


class Disk:
    """Each engine loads the update's folder, all at once."""

    async def deliver(
        self, update: WeightUpdate, trainer: Remote[Trainer] | None, receivers: Sequence[Receiver[Engine]]
    ) -> Failures:
        return await each(receivers, lambda one: one.actor.call(Engine.update_weights, update))
