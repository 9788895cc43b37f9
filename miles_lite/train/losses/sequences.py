"""Which sample each token of a pass belongs to, and the one way in which losses sum over samples.

Invariant: what is a function of a whole sequence is computed of sums that `Sequences.sum` gives: pads, packed rows and
ranks that share a sample's tokens have no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """N tokens of `count` samples.

    samples  int64 [N], the token's sample; a sample's tokens are in their order, and all here
    """

    samples: Tensor
    count: int

    def sum(self, values: Tensor) -> Tensor:
        """Of each sample's tokens, [count], of [N]; with gradient."""
        return values.new_zeros(self.count).index_add(0, self.samples, values)

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
        return Sequences(self.samples[chosen], self.count)
