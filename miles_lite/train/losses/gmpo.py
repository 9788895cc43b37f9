"""Geometric-mean policy optimization: the geometric mean of a sequence's clipped ratios (arXiv:2507.20673)."""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams


def gmpo(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-A exp(mean over the sequence of its pessimistic log-ratios).

    A log-ratio is clipped to [-eps_clip, eps_clip_high] (0.4 both in the paper), and of the two the one is taken that
    is less in the direction of the advantage. A sequence's tokens have one advantage: where they differ, their mean.
    """
    high = options.eps_clip if options.eps_clip_high is None else options.eps_clip_high
    advantages = streams.sequences.spread(streams.sequences.mean(streams.advantages))
    sign = torch.where(advantages > 0, 1.0, -1.0).to(streams.new.dtype)
    clipped = streams.logratio.clamp(-options.eps_clip, high)
    pessimistic = torch.where(sign * streams.logratio <= sign * clipped, streams.logratio, clipped)
    ratio = streams.sequences.spread(streams.sequences.mean(pessimistic)).exp()
    return -advantages * ratio, {"pg_clipfrac": (pessimistic != streams.logratio).to(sign.dtype)}
