"""What a rollout's credit is to each of its tokens, less what a penalty takes from it.

Invariant: pure, without gradient; one sample's tokens are looked at together and in order, tokens that are not trained
are no steps of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.sequences import Sequences

Recurrence = Callable[[float, float], float]


@dataclass(frozen=True, kw_only=True)
class Credit:
    """N tokens, each stream float32 [N].

    credit   what the group estimator says of the token's rollout, or turn
    penalty  what is taken from the token, in the unit of rewards
    values   the value head's, before the first update; None without one
    """

    credit: Tensor
    penalty: Tensor
    values: Tensor | None
    sequences: Sequences

    def rewards(self) -> Tensor:
        """Of each token: its penalty, negated, and with a sample's last token the credit."""
        return torch.where(ends(self.sequences), self.credit, 0.0) - self.penalty


class TokenAdvantages(Protocol):
    """The tokens' stage of an estimator (`config.algorithms.Estimator.tokens`): advantages and, where a value head
    learns them, returns, each float32 [N]."""

    def __call__(self, credit: Credit, options: Algorithm, /) -> tuple[Tensor, Tensor | None]: ...


def everywhere(credit: Credit, options: Algorithm) -> tuple[Tensor, Tensor | None]:
    """The whole credit to each token, less its own penalty."""
    del options
    return credit.credit - credit.penalty, None


def discounted(credit: Credit, options: Algorithm) -> tuple[Tensor, Tensor | None]:
    """The discounted sum of the token's and later rewards (REINFORCE++, arXiv:2501.03262, section 3)."""

    def follow(later: float, reward: float) -> float:
        return reward + options.gamma * later

    return backwards(credit.rewards(), credit.sequences, follow), None


def backwards(values: Tensor, sequences: Sequences, follow: Recurrence) -> Tensor:
    """y(t) = follow(y(t+1), values(t)) over each sample's tokens from its last one, after which y is 0; in float64."""
    result: list[float] = []
    later, sample = 0.0, -1
    for value, of in zip(values.tolist()[::-1], sequences.samples.tolist()[::-1], strict=True):
        later = follow(later if of == sample else 0.0, value)
        sample = of
        result.append(later)
    return values.new_tensor(result[::-1])


def ends(sequences: Sequences) -> Tensor:
    """bool [N]: the last token of its sample."""
    samples = sequences.samples
    last = torch.ones_like(samples, dtype=torch.bool)
    last[:-1] = samples[1:] != samples[:-1]
    return last
