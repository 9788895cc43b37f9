"""Samples to tensors: a micro-batch is cut into right-padded forward passes of similar lengths.

Invariant: how samples are packed never changes a loss or a gradient. Under causal attention right padding changes no
earlier position, so no mask is built and the fused causal kernels apply; every trained token carries its own loss
weight, and only trained tokens appear in the vectors below. What follows a sample's last trained token is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from miles_lite.sample import Sample
from miles_lite.train.batching import Batch
from miles_lite.train.shares import Shares

MAX_PADDING = 0.2
"""Largest share of padding in a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One forward pass over B right-padded sequences; N trained tokens.

    tokens            int64   [B, T]
    rows, columns     int64   [N] where the hidden state that predicts the token stands
    targets           int64   [N] the token
    temperatures      float32 [N] its logits are divided by this before the softmax
    rollout_logprobs  float32 [N] the engine's
    in_context        bool    [N] the engine sampled it behind these very tokens (see `Sample.off_context`)
    advantages        float32 [N]
    staleness         float32 [N] training steps since the weights that sampled it
    weights           float32 [N] the token's share in the policy component of the step's loss
    imitation         float32 [N] its share in the imitation component
    """

    tokens: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    temperatures: Tensor
    rollout_logprobs: Tensor
    in_context: Tensor
    advantages: Tensor
    staleness: Tensor
    weights: Tensor
    imitation: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @property
    def samples(self) -> Tensor:
        """int64 [N]: the token's sample, numbered within the pass."""
        return self.rows

    @property
    def sequences(self) -> int:
        """Samples in this pass; each has a trained token, unless the pass trains nothing."""
        return len(self.tokens) if len(self.targets) else 0


def check(batch: Batch[Sample]) -> Batch[Sample]:
    """Refuse a batch that breaks its own contract; returns it. Raises ValueError naming the sample and field."""
    size = len(batch.samples)
    for name in ("advantages", "rewards", "rollouts", "groups", "rollout_tokens", "prompt_tokens"):
        if getattr(batch, name).shape != (size,):
            raise ValueError(
                f"batch {batch.rollout_id}: {name} has shape {getattr(batch, name).shape}, expected [{size}]"
            )
    if len(batch.steps) != len(batch.sizes):
        raise ValueError(f"batch {batch.rollout_id}: {len(batch.steps)} steps but {len(batch.sizes)} sizes")
    for index, sample in enumerate(batch.samples):
        where = f"batch {batch.rollout_id}, sample {index}"
        sample.validate(where)
        if len(sample) and sample.loss_mask[0]:
            raise ValueError(f"{where}: its first token is trained, but nothing predicts it")
        if sample.trained_tokens > batch.rollout_tokens[index]:
            raise ValueError(
                f"{where}: {sample.trained_tokens} trained tokens, more than its rollout_tokens "
                f"{batch.rollout_tokens[index]}"
            )
    return batch


def used_length(shares: Shares) -> int:
    """Tokens up to the last one that is scored; 0 when none is."""
    return int(shares.places[-1]) + 1 if len(shares.places) else 0


def buckets(lengths: Sequence[int], *, limit: int) -> Iterator[list[int]]:
    """Indices of `lengths`, each once, in groups of similar length.

    A group's padded size (longest x count) is at most `limit` unless one sequence alone is longer, and at most
    MAX_PADDING of it is padding. Sequences of length 0 are left out.
    """
    group: list[int] = []
    used = 0
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        longest = lengths[group[0]] if group else lengths[index]
        padded = longest * (len(group) + 1)
        if group and (padded > limit or used + lengths[index] < (1 - MAX_PADDING) * padded):
            yield group
            group, used = [], 0
        group.append(index)
        used += lengths[index]
    if group:
        yield group


def forward_passes(
    batch: Batch[Sample], micro_batch: Sequence[int], *, shares: Sequence[Shares], limit: int
) -> list[Packed]:
    """The forward passes of one micro-batch: indices into `batch.samples`; `limit` in padded tokens.

    shares: of each of the batch's samples.
    """
    lengths = [used_length(shares[index]) for index in micro_batch]
    groups = ([micro_batch[i] for i in bucket] for bucket in buckets(lengths, limit=limit))
    return [pack(batch, group, shares=shares) for group in groups]


def pack(batch: Batch[Sample], indices: Sequence[int], *, shares: Sequence[Shares]) -> Packed:
    """One forward pass over the given samples. No samples give a pass over one token that trains nothing."""
    samples = [batch.samples[index] for index in indices]
    mine = [shares[index] for index in indices]
    lengths = [used_length(each) for each in mine]
    tokens = np.zeros((max(1, len(samples)), max([1, *lengths])), dtype=np.int64)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        tokens[row, :length] = sample.tokens[:length]
    places = [each.places for each in mine]

    def per_token(field: str, dtype: type = np.float32) -> Tensor:
        parts = [getattr(sample, field)[place] for sample, place in zip(samples, places, strict=True)]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype))

    def shared(field: str) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *(getattr(each, field) for each in mine)]))

    rows = np.repeat(np.arange(len(samples)), [len(place) for place in places])
    positions = np.concatenate([np.zeros(0, dtype=np.int64), *places])
    return Packed(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(rows),
        columns=torch.from_numpy(positions - 1),
        targets=torch.from_numpy(tokens[rows, positions]),
        temperatures=per_token("temperatures"),
        rollout_logprobs=per_token("logprobs"),
        in_context=~per_token("off_context", bool),
        advantages=shared("advantages"),
        staleness=shared("staleness"),
        weights=shared("policy"),
        imitation=shared("imitation"),
    )
