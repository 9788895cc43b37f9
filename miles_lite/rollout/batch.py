"""Groups of rollouts to one `Batch` per data-parallel rank: advantages, optimizer steps, micro-batches.

Invariant: every trained sample is in exactly one micro-batch of one rank; all samples of a rollout are in the same
optimizer step; every rank has the same number of steps, and in each step the same number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Batch, Group, Rollout, Sample


@dataclass(frozen=True, slots=True)
class _Item:
    sample: Sample
    advantage: float
    rollout_tokens: int


def trainable(rollout: Rollout) -> bool:
    """Whether a rollout can be trained: it was rewarded and some of its tokens were sampled."""
    return rollout.reward is not None and rollout.trained_tokens > 0


def advantages(group: Group, options: Algorithm) -> dict[int, float]:
    """Advantage of each trainable rollout, by rollout index: GRPO (arXiv:2402.03300, section 4.1.2).

    (reward - group mean) / (group std + 1e-6) with the sample standard deviation over the group's *rollouts*; without
    the division under --disable-grpo-std-normalization (Dr. GRPO, arXiv:2503.20783).
    """
    rollouts = [rollout for rollout in group.rollouts if trainable(rollout)]
    rewards = np.array([rollout.reward for rollout in rollouts], dtype=np.float64)
    if not options.disable_rewards_normalization and len(rewards):
        equal = bool(np.all(rewards == rewards[0]))
        spread = 0.0 if equal else rewards.std(ddof=1)
        rewards = np.zeros_like(rewards) if equal else rewards - rewards.mean()
        if not options.disable_grpo_std_normalization:
            rewards = rewards / (spread + 1e-6)
    return {rollout.index: float(value) for rollout, value in zip(rollouts, rewards, strict=True)}


def make_batches(
    rollout_id: int, groups: Sequence[Group], *, ranks: int, global_batch_size: int, options: Algorithm
) -> list[Batch]:
    """One Batch per rank. `global_batch_size` is in rollouts; the last step takes what is left over."""
    rollouts: list[tuple[Rollout, float]] = []
    for group in groups:
        values = advantages(group, options)
        rollouts += [(rollout, values[rollout.index]) for rollout in group.rollouts if rollout.index in values]
    steps = [rollouts[at : at + global_batch_size] for at in range(0, len(rollouts), global_batch_size)]
    per_rank: list[list[_Item]] = [[] for _ in range(ranks)]
    plans: list[list[list[list[int]]]] = [[] for _ in range(ranks)]
    for step in steps:
        items = [
            _Item(sample.validate(f"rollout {rollout.index}"), advantage, rollout.trained_tokens)
            for rollout, advantage in step
            for sample in rollout.samples
            if sample.trained_tokens
        ]
        shares = [_pack(share, options) for share in _balance(items, ranks)]
        width = max(len(share) for share in shares)
        for rank, share in enumerate(shares):
            plan = []
            for micro_batch in share + [[] for _ in range(width - len(share))]:
                first = len(per_rank[rank])
                per_rank[rank] += micro_batch
                plan.append(list(range(first, first + len(micro_batch))))
            plans[rank].append(plan)
    return [
        Batch(
            rollout_id=rollout_id,
            samples=[item.sample for item in items],
            advantages=np.array([item.advantage for item in items], dtype=np.float32),
            rollout_tokens=np.array([item.rollout_tokens for item in items], dtype=np.float32),
            steps=plans[rank],
            rollouts_per_step=[len(step) for step in steps],
        )
        for rank, items in enumerate(per_rank)
    ]


def _balance(items: Sequence[_Item], ranks: int) -> list[list[_Item]]:
    """Longest first onto the least loaded rank (LPT), so that ranks finish together."""
    shares: list[list[_Item]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for item in sorted(items, key=lambda item: -len(item.sample)):
        rank = loads.index(min(loads))
        shares[rank].append(item)
        loads[rank] += len(item.sample)
    return shares


def _pack(items: Sequence[_Item], options: Algorithm) -> list[list[_Item]]:
    """Micro-batches: first-fit-decreasing into the token budget, or `micro_batch_size` samples each."""
    if not options.use_dynamic_batch_size:
        size = options.micro_batch_size
        return [list(items[at : at + size]) for at in range(0, len(items), size)]
    budget = options.max_tokens_per_gpu or 0
    bins: list[list[_Item]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda item: -len(item.sample)):
        at = next((index for index, free in enumerate(room) if free >= len(item.sample)), None)
        if at is None:
            bins.append([item])
            room.append(budget - len(item.sample))
        else:
            bins[at].append(item)
            room[at] -= len(item.sample)
    return bins
