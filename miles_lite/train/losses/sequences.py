"""Which sample each token of a pass belongs to, and the one way in which losses sum over samples.

Invariant: what is a function of a whole sequence is computed of sums that `Sequences.sum` gives. Where the tokens of a
sample are divided among ranks it adds their parts up, forward and backward, and nothing else has to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """N tokens of `count` samples.

    samples  int64 [N], the token's sample; a sample's tokens are in their order
    group    ranks among which the tokens of these samples are divided; None: all of them are here
    """

    samples: Tensor
    count: int
    group: dist.ProcessGroup | None = None

    def sum(self, values: Tensor) -> Tensor:
        """Of each sample's tokens, [count], of [N]; with gradient."""
        here = values.new_zeros(self.count).index_add(0, self.samples, values)
        return here if self.group is None else _Sum.apply(here, self.group)  # type: ignore[no-untyped-call]

    def lengths(self, values: Tensor) -> Tensor:
        """Tokens of each sample, [count], in the dtype of `values`; at least 1."""
        return self.sum(torch.ones_like(values)).clamp_min(1.0)

    def mean(self, values: Tensor) -> Tensor:
        """Of each sample's tokens, [count], of [N]; 0 where there are none."""
        return self.sum(values) / self.lengths(values.detach())

    def effective_ratio(self, logratio: Tensor) -> Tensor:
        """(Σw)² / (n·Σw²) of w = exp(logratio) over each sample's n tokens (Kish, 1965), [count]; 1 where n is 0."""
        weights = logratio.detach().exp()
        total, squares, tokens = self.sum(weights), self.sum(weights.square()), self.sum(torch.ones_like(weights))
        return torch.where(tokens > 0, total.square() / (tokens * squares), torch.ones_like(total))

    def spread(self, per_sample: Tensor) -> Tensor:
        """A value of each sample to each of its tokens, [N]."""
        return per_sample[self.samples]

    def at(self, chosen: Tensor) -> Sequences:
        """Of the tokens that are chosen alone; bool [N]."""
        return Sequences(self.samples[chosen], self.count, self.group)


class _Sum(torch.autograd.Function):
    """Sum over ranks; the loss is the sum over ranks too, so that the gradient is."""

    @staticmethod
    def forward(ctx: Any, here: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = here.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
