"""Rollouts to one `Batch` per data-parallel rank: optimizer steps, balance, micro-batches. Only records are looked at.

Invariant: every trained sample is in exactly one micro-batch of one rank; all samples of a rollout are in the same
optimizer step; every rank has the same number of steps, and in each step the same number of micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout, Sample, SampleRecord, Samples
from miles_lite.train.flops import Flops
from miles_lite.train.micro_batches import micro_batches

FETCHES = 8
"""Rollouts whose samples are fetched at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: which one of a rollout's."""

    rollout: Samples
    index: int


S = TypeVar("S", Place, Sample)


@dataclass(slots=True)
class Batch(Generic[S]):
    """What one data-parallel rank trains on in one training step (one `rollout_id`).

    samples           the rank's samples, or where they lie
    advantages        float32 [len(samples)], the group-normalised reward of the sample's rollout
    rollout_tokens    float32 [len(samples)], trained tokens of the sample's *whole* rollout: its denominator
    steps             per optimizer step, per micro-batch: indices into `samples`; all ranks have equal shape[:2]
    rollouts_per_step how many rollouts each optimizer step covers over all ranks
    """

    rollout_id: int
    samples: list[S]
    advantages: np.ndarray
    rollout_tokens: np.ndarray
    steps: list[list[list[int]]]
    rollouts_per_step: list[int]


def fetch(batch: Batch[Place]) -> Batch[Sample]:
    """The batch with its samples; of each rollout they are brought once, without copying what lies on this node."""
    rollouts = {id(place.rollout): place.rollout for place in batch.samples}
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = dict(zip(rollouts, pool.map(lambda rollout: rollout.fetch(), rollouts.values()), strict=True))
    return Batch[Sample](
        rollout_id=batch.rollout_id,
        samples=[fetched[id(place.rollout)][place.index] for place in batch.samples],
        advantages=batch.advantages,
        rollout_tokens=batch.rollout_tokens,
        steps=batch.steps,
        rollouts_per_step=batch.rollouts_per_step,
    )


@dataclass(frozen=True, slots=True)
class _Item:
    place: Place
    record: SampleRecord
    family: int
    advantage: float
    rollout_tokens: int


def make_batches(
    rollout_id: int,
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    *,
    ranks: int,
    global_batch_size: int,
    options: Algorithm,
    flops: Flops,
) -> list[Batch[Place]]:
    """One Batch per data-parallel rank, of trainable rollouts and an advantage each.

    `global_batch_size` is in rollouts; the last step takes what is left over. `flops`: how ranks are given alike to do.
    """
    rated = list(zip(rollouts, advantages, strict=True))
    steps = [rated[at : at + global_batch_size] for at in range(0, len(rated), global_batch_size)]
    shares = [_shares(_items(step), ranks, options, flops) for step in steps]
    sizes = [len(step) for step in steps]
    return [_batch(rollout_id, [share[rank] for share in shares], sizes) for rank in range(ranks)]


def _items(step: Sequence[tuple[Rollout, float]]) -> list[_Item]:
    """The samples of an optimizer step that train something."""
    items = []
    for rollout, advantage in step:
        assert rollout.stored is not None, f"rollout {rollout.index} is trained, and its samples lie nowhere"
        items += [
            _Item(Place(rollout.stored, index), sample, rollout.group_index, advantage, rollout.trained_tokens)
            for index, sample in enumerate(rollout.samples)
            if sample.trained_tokens
        ]
    return items


def _shares(items: Sequence[_Item], ranks: int, options: Algorithm, flops: Flops) -> list[list[list[_Item]]]:
    """Per rank its micro-batches; who needs fewer than the others gets empty ones."""
    records, families = [item.record for item in items], [item.family for item in items]
    dealt = micro_batches(records, families, ranks=ranks, options=options, flops=flops)
    shares = [[[items[index] for index in micro_batch] for micro_batch in share] for share in dealt]
    most = max(map(len, shares))
    return [share + [[]] * (most - len(share)) for share in shares]


def _batch(rollout_id: int, steps: Sequence[list[list[_Item]]], rollouts_per_step: list[int]) -> Batch[Place]:
    """One rank's, of its micro-batches per step."""
    items = [item for step in steps for micro_batch in step for item in micro_batch]
    number = itertools.count()
    return Batch(
        rollout_id=rollout_id,
        samples=[item.place for item in items],
        advantages=np.array([item.advantage for item in items], dtype=np.float32),
        rollout_tokens=np.array([item.rollout_tokens for item in items], dtype=np.float32),
        steps=[[[next(number) for _ in micro_batch] for micro_batch in step] for step in steps],
        rollouts_per_step=rollouts_per_step,
    )
