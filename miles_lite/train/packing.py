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
    weights           float32 [N] the token's share in the loss of the step
    """

    tokens: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    temperatures: Tensor
    rollout_logprobs: Tensor
    in_context: Tensor
    advantages: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @property
    def sequences(self) -> int:
        """Samples in this pass; each has a trained token, unless the pass trains nothing."""
        return len(self.tokens) if len(self.targets) else 0


def check(batch: Batch[Sample]) -> Batch[Sample]:
    """Refuse a batch that breaks its own contract; returns it. Raises ValueError naming the sample and field."""
    size = len(batch.samples)
    for name in ("advantages", "rollout_tokens"):
        if getattr(batch, name).shape != (size,):
            raise ValueError(
                f"batch {batch.rollout_id}: {name} has shape {getattr(batch, name).shape}, expected [{size}]"
            )
    if len(batch.steps) != len(batch.rollouts_per_step):
        raise ValueError(
            f"batch {batch.rollout_id}: {len(batch.steps)} steps but {len(batch.rollouts_per_step)} rollouts_per_step"
        )
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


def used_length(sample: Sample) -> int:
    """Tokens up to the last trained one; 0 when nothing is trained."""
    trained = np.flatnonzero(sample.loss_mask)
    return int(trained[-1]) + 1 if len(trained) else 0


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
    batch: Batch[Sample], micro_batch: Sequence[int], *, denominators: np.ndarray, limit: int
) -> list[Packed]:
    """The forward passes of one micro-batch: indices into `batch.samples`; `limit` in padded tokens.

    denominators: float64 [samples], what a token's loss is divided by.
    """
    lengths = [used_length(batch.samples[index]) for index in micro_batch]
    groups = ([micro_batch[i] for i in bucket] for bucket in buckets(lengths, limit=limit))
    return [pack(batch, group, denominators=denominators) for group in groups]


def pack(batch: Batch[Sample], indices: Sequence[int], *, denominators: np.ndarray) -> Packed:
    """One forward pass over the given samples. No samples give a pass over one token that trains nothing."""
    samples = [batch.samples[index] for index in indices]
    lengths = [used_length(sample) for sample in samples]
    tokens = np.zeros((max(1, len(samples)), max([1, *lengths])), dtype=np.int64)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        tokens[row, :length] = sample.tokens[:length]
    places = [np.flatnonzero(sample.loss_mask) for sample in samples]
    counts = [len(place) for place in places]

    def per_token(field: str, dtype: type = np.float32) -> Tensor:
        parts = [getattr(sample, field)[place] for sample, place in zip(samples, places, strict=True)]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype))

    def per_sample(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(values[list(indices)].astype(np.float32), counts))

    rows = np.repeat(np.arange(len(samples)), counts)
    positions = np.concatenate([np.zeros(0, dtype=np.int64), *places])
    return Packed(
        tokens=torch.from_numpy(tokens),
        rows=torch.from_numpy(rows),
        columns=torch.from_numpy(positions - 1),
        targets=torch.from_numpy(tokens[rows, positions]),
        temperatures=per_token("temperatures"),
        rollout_logprobs=per_token("logprobs"),
        in_context=~per_token("off_context", bool),
        advantages=per_sample(batch.advantages),
        weights=per_sample(1.0 / denominators),
    )
