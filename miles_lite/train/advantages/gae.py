"""Generalised advantage estimation (arXiv:1506.02438, eq. 16) over a sample's trained tokens, as PPO takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.advantages.tokens import Credit, backwards, ends


def gae(credit: Credit, options: Algorithm) -> tuple[Tensor, Tensor | None]:
    """A(t) = δ(t) + gamma·lambda·A(t+1) with δ(t) = r(t) + gamma·V(t+1) - V(t); behind the last token V is 0.

    The returns are A + V: what the value head learns.
    """
    assert credit.values is not None, "estimators with a critic are given its values"
    following = torch.zeros_like(credit.values)
    following[:-1] = credit.values[1:]
    following = torch.where(ends(credit.sequences), 0.0, following)
    surprises = credit.rewards() + options.gamma * following - credit.values

    def follow(later: float, surprise: float) -> float:
        return surprise + options.gamma * options.lambd * later

    advantages = backwards(surprises, credit.sequences, follow)
    return advantages, advantages + credit.values
