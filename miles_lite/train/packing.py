"""Samples to tensors: a micro-batch becomes rows of tokens without padding, in which shared prefixes stand once.

Invariant: how samples are packed never changes a loss or a gradient. A (hidden state, target) pair is scored once and
copied to all samples that have it, so what follows sees samples as if each stood alone; only trained tokens appear in
the streams below, each with its own loss weight. What follows a sample's last trained token is left out, and so is that
token itself: it predicts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum, auto

import numpy as np
import torch
from torch import Tensor

from miles_lite.model_folder import foreign_id
from miles_lite.sample import Sample
from miles_lite.train.batching import Batch
from miles_lite.train.layout import Layout
from miles_lite.train.radix_tree import cut, place, sort, unshared
from miles_lite.train.routing_replay import PADDING, UNKNOWN, Routing
from miles_lite.train.shares import Shares

MAX_PADDING = 0.2
"""Largest share of padding in a forward pass of padded rows."""


class Form(Enum):
    """How samples share a forward pass: one per row, padded on the right; in one row; in one row as a tree."""

    PADDED = auto()
    PACKED = auto()
    TREE = auto()


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One forward pass over tokens [B, T]; P scored pairs and N trained tokens of some samples.

    tokens            int64   [B, T]
    positions         int64   [B, T] within the token's own sequence
    experts           int16   [B, T, layers, k] that the engine routed the token to, negative where it is not known (see
                      `Routing`); None: routers choose by themselves
    layout            what sees what in the only row (B is 1); None: B sequences padded on the right
    sequences         samples in this pass that have a trained token
    seen              tokens that its samples see, each alone; distinct: those that are computed, padding left out
    pairs             of a query and a key that it sees

    states            int64   [P] which of the B x T hidden states, row by row, predicts
    targets           int64   [P] the token
    temperatures      float32 [P] its logits are divided by this before the softmax

    members           the samples, as indices into the batch; places: of each, where its tokens stand in it, int64
    copies            int64   [N] the token's pair
    samples           int64   [N] the token's sample, numbered within the pass
    rollout_logprobs  float32 [N] the engine's
    in_context        bool    [N] the engine sampled it behind these very tokens (see `Sample.off_context`)
    unrouted          bool    [N] experts are replayed, and are not known of some token before it
    advantages        float32 [N]
    staleness         float32 [N] training steps since the weights that sampled it
    teacher           float32 [N] the number of its teacher
    teacher_logprobs  float32 [N] what a served teacher says of it
    teacher_top_ids   int64   [N, K] the tokens that it finds likeliest there; teacher_top_logprobs: float32, of these
    weights           float32 [N] the token's share in the policy component of the step's loss
    imitation         float32 [N] its share in the imitation component
    """

    tokens: Tensor
    positions: Tensor
    experts: Tensor | None
    layout: Layout | None
    sequences: int
    seen: int
    distinct: int
    pairs: int
    states: Tensor
    targets: Tensor
    temperatures: Tensor
    members: Sequence[int]
    places: Sequence[np.ndarray]
    copies: Tensor
    samples: Tensor
    rollout_logprobs: Tensor
    in_context: Tensor
    unrouted: Tensor
    advantages: Tensor
    staleness: Tensor
    teacher: Tensor
    teacher_logprobs: Tensor
    teacher_top_ids: Tensor
    teacher_top_logprobs: Tensor
    weights: Tensor
    imitation: Tensor

    def scoring(self, ids: Tensor) -> Packed:
        """The same pass, which scores `ids`, int64 [N, K], in the places of its tokens too: N + N x K pairs, row by
        row."""
        places = self.copies.repeat_interleave(ids.shape[1])
        return replace(
            self,
            states=torch.cat([self.states, self.states[places]]),
            targets=torch.cat([self.targets, ids.flatten()]),
            temperatures=torch.cat([self.temperatures, self.temperatures[places]]),
            copies=torch.cat([self.copies, len(self.states) + torch.arange(ids.numel(), device=ids.device)]),
        )

    def to(self, device: torch.device) -> Packed:
        tensors = {f.name: each for f in fields(self) if isinstance(each := getattr(self, f.name), Tensor)}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the inputs of a pass's samples stand: `indices` into the batch, and int64 [inputs] into B x T of each."""

    indices: list[int]
    places: list[np.ndarray]
    shape: tuple[int, int]
    layout: Layout | None

    @property
    def seen(self) -> int:
        """Inputs of all samples."""
        return sum(map(len, self.places))

    @property
    def distinct(self) -> int:
        """Those that are computed."""
        return self.seen if self.layout is None else self.layout.tokens

    @property
    def pairs(self) -> int:
        """Of a query and a key that it sees."""
        alone = sum(len(where) * (len(where) + 1) // 2 for where in self.places)
        return alone if self.layout is None else self.layout.pairs


def check(batch: Batch[Sample], *, vocabulary: int) -> Batch[Sample]:
    """Refuse a batch that breaks its own contract, or has ids that a model of so many does not; returns it. Raises
    ValueError naming the sample and field."""
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
        if (strange := foreign_id(sample.tokens, vocabulary)) is not None:
            raise ValueError(f"{where}: {strange}")
        if len(sample) and sample.loss_mask[0]:
            raise ValueError(f"{where}: its first token is trained, but nothing predicts it")
        if sample.trained_tokens > batch.rollout_tokens[index]:
            raise ValueError(
                f"{where}: {sample.trained_tokens} trained tokens, more than its rollout_tokens "
                f"{batch.rollout_tokens[index]}"
            )
    return batch


def input_length(shares: Shares) -> int:
    """Tokens before the last one that is scored, which are all that a model must see; 0 when none is."""
    return int(shares.places[-1]) if len(shares.places) else 0


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
    batch: Batch[Sample],
    micro_batch: Sequence[int],
    *,
    shares: Sequence[Shares],
    limit: int,
    form: Form,
    routing: Routing | None = None,
) -> list[Packed]:
    """The forward passes of one micro-batch: indices into `batch.samples`; `limit` in tokens that are computed.

    shares: of each of the batch's samples. routing: what is replayed; then tokens are shared only where they were
    routed alike. Raises UserError as `Routing.rows` does.
    """
    inputs = {index: input_length(shares[index]) for index in micro_batch}
    used = [index for index in micro_batch if inputs[index]]
    lengths = [inputs[index] for index in used]
    if form is Form.PADDED:
        groups = ([used[i] for i in bucket] for bucket in buckets(lengths, limit=limit))
        passes = [padded_rows(group, [inputs[index] for index in group]) for group in groups]
    else:
        known = [identity(batch.samples[index], inputs[index], routing) for index in used]
        shared = sort(known) if form is Form.TREE else unshared(len(used))
        passes = []
        for row in cut(shared, lengths, limit=limit):
            layout, places = place(row, lengths)
            passes.append(Rows([used[number] for number in row.order], places, (1, layout.tokens), layout))
    return [pack(batch, rows, shares=shares, routing=routing) for rows in passes]


def identity(sample: Sample, length: int, routing: Routing | None) -> np.ndarray:
    """What makes a sample's first tokens the same as another's: uint8 [length, W]."""
    tokens = sample.tokens[:length].astype(">i4").view(np.uint8).reshape(length, -1)
    if routing is None:
        return tokens
    return np.concatenate([tokens, routing.rows(sample, length).reshape(length, -1).view(np.uint8)], axis=1)


def padded_rows(indices: list[int], lengths: Sequence[int]) -> Rows:
    """A sequence per row."""
    width = max(lengths)
    places = [row * width + np.arange(length) for row, length in enumerate(lengths)]
    return Rows(indices, places, (len(indices), width), None)


def idle_pass(batch: Batch[Sample]) -> Packed:
    """A pass over one token that trains nothing."""
    return pack(batch, Rows([], [], (1, 1), None), shares=[])


def bare_pass(batch: Batch[Sample], tokens: int) -> Packed:
    """A pass over the ids 0, 1, ... in one sequence, each of whose states is scored and none trained."""
    ids = torch.arange(tokens)
    row = {"tokens": ids[None], "positions": ids[None], "states": ids, "targets": ids, "copies": ids}
    return replace(idle_pass(batch), temperatures=torch.ones(tokens), **row)  # type: ignore[arg-type]


def pack(batch: Batch[Sample], rows: Rows, *, shares: Sequence[Shares], routing: Routing | None = None) -> Packed:
    """One forward pass."""
    samples = [batch.samples[index] for index in rows.indices]
    tokens, positions = np.zeros((2, *rows.shape), np.int64)
    experts = None if routing is None else np.full((*rows.shape, routing.layers, routing.k), PADDING, np.int16)
    unrouted = []
    for sample, where, index in zip(samples, rows.places, rows.indices, strict=True):
        unknown = np.zeros(len(where), bool)
        if routing is not None and experts is not None:
            experts.reshape(-1, routing.layers, routing.k)[where] = chosen = routing.rows(sample, len(where))
            unknown = np.logical_or.accumulate((chosen == UNKNOWN).any((1, 2)))
        unrouted.append(unknown[shares[index].places - 1])
        tokens.reshape(-1)[where] = sample.tokens[: len(where)]
        positions.reshape(-1)[where] = np.arange(len(where))
    mine = [shares[index] for index in rows.indices]
    trained = [each.places for each in mine]

    def per_token(field: str, dtype: type = np.float32) -> np.ndarray:
        parts = [getattr(sample, field)[each] for sample, each in zip(samples, trained, strict=True)]
        return np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype)

    def shared(field: str, dtype: type = np.float32) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(each, field) for each in mine] or [np.zeros(0, dtype)]))

    predicting = [where[each - 1] for where, each in zip(rows.places, trained, strict=True)]
    pairs = (
        np.concatenate([np.zeros(0, np.int64), *predicting]),
        per_token("tokens", np.int64),
        per_token("temperatures"),
    )
    first, copies = distinct(*pairs)
    states, targets, temperatures = (torch.from_numpy(each[first]) for each in pairs)
    return Packed(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        experts=None if experts is None else torch.from_numpy(experts),
        layout=rows.layout,
        sequences=len(samples),
        seen=rows.seen,
        distinct=rows.distinct,
        pairs=rows.pairs,
        states=states,
        targets=targets,
        temperatures=temperatures,
        members=rows.indices,
        places=trained,
        copies=torch.from_numpy(copies),
        samples=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(each) for each in trained])),
        rollout_logprobs=torch.from_numpy(per_token("logprobs")),
        in_context=torch.from_numpy(~per_token("off_context", bool)),
        unrouted=torch.from_numpy(np.concatenate([np.zeros(0, bool), *unrouted])),
        advantages=shared("advantages"),
        staleness=shared("staleness"),
        teacher=shared("teacher"),
        teacher_logprobs=shared("teacher_logprobs"),
        teacher_top_ids=shared("teacher_top_ids", np.int64),
        teacher_top_logprobs=shared("teacher_top_logprobs"),
        weights=shared("policy"),
        imitation=shared("imitation"),
    )


def distinct(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows given as columns [N]: the first of each that are equal, in order, and per row its number among those."""
    order = np.lexsort(columns[::-1])
    differs = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    numbers = np.concatenate([np.zeros(min(1, len(order)), np.int64), np.cumsum(differs)])
    copies = np.empty(len(order), np.int64)
    copies[order] = numbers
    return order[np.flatnonzero(np.diff(numbers, prepend=-1))], copies
