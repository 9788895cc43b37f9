"""Logprobs and entropies of tokens from hidden states, without their logits.

One autograd function: logits exist for a chunk of tokens at a time, in two buffers that all chunks share, forward and
once more backward. A logprob is of the distribution the token was sampled from: log_softmax(logits / temperature).

Invariant: peak memory does not depend on the number of tokens; arithmetic is float32 whatever the weights are. The
vocabulary may be spread over a process group: then every rank gives the same hidden states and gets the same results
and the same gradient of them, and its own rows' gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 25
"""Logits held at once (float32): 128 MiB, twice."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which rows of the head's weight a rank has: those from `first` on; no rank of `group` has more than `most`.
    The defaults: all of them."""

    first: int = 0
    most: int = 0
    group: dist.ProcessGroup | None = None

    def reduce(self, values: Tensor, *, maximum: bool = False) -> Tensor:
        """Sum (or maximum) over the group, in place."""
        if self.group is not None:
            dist.all_reduce(values, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.group)
        return values


WHOLE = Vocabulary()


def score(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperatures: Tensor,
    *,
    bias: Tensor | None = None,
    entropy_gradient: bool = False,
    vocabulary: Vocabulary = WHOLE,
    elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Two float32 [N]: log p(target), and the entropy of its distribution in nats, without gradient unless
    `entropy_gradient`.

    hidden [N, width] and weight [vocabulary, width] of one dtype; bias [vocabulary]; targets int64 [N], numbered in the
    whole vocabulary; temperatures float32 [N]. `elements` logits are held at once, those of one token at least.
    """
    chunk = max(1, elements // max(vocabulary.most, len(weight)))
    result: tuple[Tensor, Tensor] = _Score.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperatures.reciprocal(), chunk, entropy_gradient, vocabulary
    )
    return result


def likeliest(
    hidden: Tensor,
    weight: Tensor,
    temperatures: Tensor,
    *,
    count: int,
    bias: Tensor | None = None,
    elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """int64 [N, count]: the tokens that come next most likely, the likeliest first; of a whole vocabulary."""
    chosen = torch.empty(len(hidden), count, dtype=torch.int64, device=hidden.device)
    for part, own, scale in _chunks(max(1, elements // len(weight)), hidden, temperatures.reciprocal()):
        logits = _project(own, weight, bias, out=hidden.new_empty(len(own), len(weight), dtype=torch.float32))
        chosen[part] = logits.mul_(scale[:, None]).topk(count).indices
    return chosen


class _Score(torch.autograd.Function):
    """`score`, of inverse temperatures. By logits, logprobs have the slope onehot - p, entropy -p (log p + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scales: Tensor,
        chunk: int,
        entropy_gradient: bool,
        vocabulary: Vocabulary,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropy, normaliser = hidden.new_empty(3, len(hidden), dtype=torch.float32).unbind()
        logits, other = _buffers(2, hidden, weight, chunk)
        for part, own, scale in _chunks(chunk, hidden, scales):
            raw = _project(own, weight, bias, out=logits[: len(own)])
            top = vocabulary.reduce(raw.amax(-1), maximum=True) * scale
            shifted = torch.addcmul(-top[:, None], raw, scale[:, None], out=raw)
            rows, columns, inside = _own(targets[part], weight, vocabulary)
            target = torch.where(inside, shifted[rows, columns], 0.0)
            exponentials = torch.exp(shifted, out=other[: len(own)])
            total = exponentials.sum(-1)
            mean = exponentials.mul_(shifted).sum(-1)
            target, total, mean = vocabulary.reduce(torch.stack([target, total, mean])).unbind()
            logprobs[part] = target - total.log()
            entropy[part] = total.log() - mean / total
            normaliser[part] = total.log() + top
        ctx.save_for_backward(hidden, weight, bias, targets, scales, entropy, normaliser)
        ctx.chunk, ctx.entropy_gradient, ctx.vocabulary = chunk, entropy_gradient, vocabulary
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, scales, entropy, normaliser = ctx.saved_tensors
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        sums = {"device": hidden.device, "dtype": torch.float32}
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros(weight.shape, **sums) if needs_weight else None
        of_bias = torch.zeros(len(weight), **sums) if needs_bias else None
        logits, *other = _buffers(1 + ctx.entropy_gradient, hidden, weight, ctx.chunk)
        for part, own, scale in _chunks(ctx.chunk, hidden, scales):
            raw = _project(own, weight, bias, out=logits[: len(own)])
            logp = torch.addcmul(-normaliser[part, None], raw, scale[:, None], out=raw)
            one = of_logprobs[part] * scale
            if ctx.entropy_gradient:
                p = torch.exp(logp, out=other[0][: len(own)])
                bonus = of_entropy[part] * scale
                logp.add_(entropy[part, None]).mul_(bonus[:, None]).add_(one[:, None])
                slope = logp.mul_(p).neg_()
            else:
                slope = logp.exp_().mul_(-one[:, None])
            rows, columns, inside = _own(targets[part], weight, ctx.vocabulary)
            slope[rows, columns] += torch.where(inside, one, 0.0)
            of_hidden[part] = slope.to(weight.dtype) @ weight
            if of_weight is not None:
                _add_outer(of_weight, slope, own)
            if of_bias is not None:
                of_bias += slope.sum(0)
        ctx.vocabulary.reduce(of_hidden)
        weights = (None if each is None else each.to(weight.dtype) for each in (of_weight, of_bias))
        return of_hidden, *weights, None, None, None, None, None


def _buffers(count: int, hidden: Tensor, weight: Tensor, chunk: int) -> Iterator[Tensor]:
    """float32 [chunk, vocabulary] each, fewer rows where there are fewer tokens."""
    rows = min(chunk, len(hidden))
    return (hidden.new_empty(rows, len(weight), dtype=torch.float32) for _ in range(count))


def _chunks(size: int, hidden: Tensor, scales: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Where a chunk is, its hidden states and its inverse temperatures."""
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        yield part, hidden[part], scales[part]


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> Tensor:
    """The logits, written into `out`."""
    if weight.dtype == torch.float32:
        torch.mm(hidden, weight.t(), out=out)
    else:
        out.copy_(hidden @ weight.t())
    return out if bias is None else out.add_(bias)


def _own(targets: Tensor, weight: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each token's target among the logits of this rank, and whether it is there."""
    columns = targets - vocabulary.first
    inside = (columns >= 0) & (columns < len(weight))
    return torch.arange(len(targets), device=targets.device), columns.clamp(0, len(weight) - 1), inside


def _add_outer(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """total += slopeᵀ @ hidden, summed in float32."""
    if hidden.dtype == torch.float32:
        total.addmm_(slope.t(), hidden)
    else:
        total += slope.to(hidden.dtype).t() @ hidden
