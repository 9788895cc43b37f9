"""Rollouts to one `Batch` per data-parallel rank: optimizer steps, balance, micro-batches. Only records are looked at.

Invariant: every trained sample is in exactly one micro-batch of one rank; all samples of a rollout are in the same
optimizer step; every rank has the same number of steps, and in each step the same number of micro-batches.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.hooks import Advantage
from miles_lite.sample import Rollout, Sample, SampleRecord, Samples
from miles_lite.train.flops import Flops
from miles_lite.train.micro_batches import micro_batches
from miles_lite.train.reductions import StepSize

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

    samples          the rank's samples, or where they lie
    advantages       float32 [len(samples)], of the sample's rollout; 0 where they are by turn
    turn_advantages  where they are: of each turn of the session, by index into `samples`
    rewards          float32 [len(samples)], of the sample's rollout; NaN where it has none
    rollouts         int64 [len(samples)], the number in the run of the sample's rollout; groups: of its prompt's group
    rollout_tokens   float32 [len(samples)], trained tokens of the sample's *whole* rollout
    prompt_tokens    float32 [len(samples)], of all rollouts of its prompt in its optimizer step
    teachers         [len(samples)], the name of who teaches the sample's prompt; "" where there is one teacher at most
    steps            per optimizer step, per micro-batch: indices into `samples`; all ranks have equal shape[:2]
    sizes            what each optimizer step covers over all ranks
    kept             numbers of rollouts of which this rank is to tell what it makes of their tokens
    """

    rollout_id: int
    samples: list[S]
    advantages: np.ndarray
    turn_advantages: dict[int, tuple[float, ...]]
    rewards: np.ndarray
    rollouts: np.ndarray
    groups: np.ndarray
    rollout_tokens: np.ndarray
    prompt_tokens: np.ndarray
    teachers: list[str]
    steps: list[list[list[int]]]
    sizes: list[StepSize]
    kept: frozenset[int] = frozenset()


def fetch(batch: Batch[Place]) -> Batch[Sample]:
    """The batch with its samples; of each rollout they are brought once, without copying what lies on this node."""
    rollouts = {id(place.rollout): place.rollout for place in batch.samples}
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = dict(zip(rollouts, pool.map(lambda rollout: rollout.fetch(), rollouts.values()), strict=True))
    samples = [fetched[id(place.rollout)][place.index] for place in batch.samples]
    return replace(cast(Batch[Any], batch), samples=samples)


def batch_of(
    samples: Sequence[Sample],
    advantages: Sequence[float] | np.ndarray,
    *,
    steps: list[list[list[int]]] | None = None,
    rollout_id: int = 0,
) -> Batch[Sample]:
    """Each sample a rollout of a prompt of its own; in one micro-batch of one step, unless `steps` says otherwise."""
    steps = [[list(range(len(samples)))]] if steps is None else steps
    tokens = np.array([sample.trained_tokens for sample in samples], np.float32)
    chosen = [[index for micro_batch in step for index in micro_batch] for step in steps]
    return Batch(
        rollout_id=rollout_id,
        samples=list(samples),
        advantages=np.asarray(advantages, dtype=np.float32),
        turn_advantages={},
        rewards=np.full(len(samples), np.nan, np.float32),
        rollouts=np.arange(len(samples)),
        groups=np.arange(len(samples)),
        rollout_tokens=tokens,
        prompt_tokens=tokens.copy(),
        teachers=[""] * len(samples),
        steps=steps,
        sizes=[StepSize(len(step), len(step), len(step), int(tokens[step].sum())) for step in chosen],
    )


@dataclass(frozen=True, slots=True)
class _Item:
    place: Place
    record: SampleRecord
    advantage: Advantage
    rollout: Rollout
    prompt_tokens: int


def make_batches(
    rollout_id: int,
    rollouts: Sequence[Rollout],
    advantages: Sequence[Advantage],
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
    items = [_items(step) for step in steps]
    shares = [_shares(each, ranks, options, flops) for each in items]
    sizes = [_size(step, each) for step, each in zip(steps, items, strict=True)]
    return [_batch(rollout_id, [share[rank] for share in shares], sizes) for rank in range(ranks)]


def _items(step: Sequence[tuple[Rollout, Advantage]]) -> list[_Item]:
    """The samples of an optimizer step that train something."""
    prompts = Counter[int]()
    for rollout, _ in step:
        prompts[rollout.group_index] += rollout.trained_tokens
    items = []
    for rollout, advantage in step:
        assert rollout.stored is not None, f"rollout {rollout.index} is trained, and its samples lie nowhere"
        items += [
            _Item(Place(rollout.stored, index), sample, advantage, rollout, prompts[rollout.group_index])
            for index, sample in enumerate(rollout.samples)
            if sample.trained_tokens
        ]
    return items


def _size(step: Sequence[tuple[Rollout, Advantage]], items: Sequence[_Item]) -> StepSize:
    prompts = {rollout.group_index for rollout, _ in step}
    return StepSize(len(step), len(items), len(prompts), sum(rollout.trained_tokens for rollout, _ in step))


def _shares(items: Sequence[_Item], ranks: int, options: Algorithm, flops: Flops) -> list[list[list[_Item]]]:
    """Per rank its micro-batches; who needs fewer than the others gets empty ones."""
    records, families = [item.record for item in items], [item.rollout.group_index for item in items]
    dealt = micro_batches(records, families, ranks=ranks, options=options, flops=flops)
    shares = [[[items[index] for index in micro_batch] for micro_batch in share] for share in dealt]
    most = max(map(len, shares))
    return [share + [[]] * (most - len(share)) for share in shares]


def _batch(rollout_id: int, steps: Sequence[list[list[_Item]]], sizes: list[StepSize]) -> Batch[Place]:
    """One rank's, of its micro-batches per step."""
    items = [item for step in steps for micro_batch in step for item in micro_batch]
    number = itertools.count()

    def each(of: Callable[[_Item], float | None], dtype: type = np.float32) -> np.ndarray:
        return np.array([of(item) for item in items], dtype=dtype)

    return Batch(
        rollout_id=rollout_id,
        samples=[item.place for item in items],
        advantages=each(lambda item: 0.0 if isinstance(item.advantage, tuple) else item.advantage),
        turn_advantages={at: item.advantage for at, item in enumerate(items) if isinstance(item.advantage, tuple)},
        rewards=each(lambda item: item.rollout.reward),
        rollouts=each(lambda item: item.rollout.index, np.int64),
        groups=each(lambda item: item.rollout.group_index, np.int64),
        rollout_tokens=each(lambda item: item.rollout.trained_tokens),
        prompt_tokens=each(lambda item: item.prompt_tokens),
        teachers=[item.rollout.teacher for item in items],
        steps=[[[next(number) for _ in micro_batch] for micro_batch in step] for step in steps],
        sizes=sizes,
    )
