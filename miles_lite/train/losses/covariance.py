"""Clip-Cov and KL-Cov: tokens whose logprob and advantage rise together are held back, as they end entropy
(arXiv:2505.22617).

The covariance is with the means over the tokens of the forward pass, as the authors' code has it: of these two losses
alone the value depends on what is packed together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import clipped_policy_loss


def clip_cov(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy gradient without a share `cov_ratio` of the tokens.

    They are drawn from those with a covariance in [cov_low, cov_high] that no clip holds; the draw depends on how many
    there are to draw from alone, so that every rank that computes this pass makes the same.
    """
    high = options.eps_clip if options.eps_clip_high is None else options.eps_clip_high
    loss, clipped = clipped_policy_loss(
        streams.logratio, streams.advantages, eps_clip=options.eps_clip, eps_clip_high=high
    )
    covariance = _covariance(streams)
    between = (covariance > options.cov_low) & (covariance < options.cov_high) & (clipped == 0)
    candidates = between.nonzero()[:, 0]
    count = min(len(candidates), _count(len(loss), options))
    draw = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(len(candidates)))[:count]
    held = torch.zeros_like(between)
    held[candidates[draw.to(candidates.device)]] = True
    return torch.where(held, torch.zeros_like(loss), loss), {"pg_clipfrac": torch.maximum(clipped, held.to(loss.dtype))}


def kl_cov(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-r A + kl_cov_coef |log r| on the share `cov_ratio` of the tokens with the largest covariance, -r A elsewhere."""
    loss = -streams.logratio.exp() * streams.advantages
    held = torch.zeros_like(loss, dtype=torch.bool)
    held[_covariance(streams).topk(min(len(loss), _count(len(loss), options))).indices] = True
    penalised = loss + options.kl_cov_coef * streams.logratio.abs()
    return torch.where(held, penalised, loss), {"pg_clipfrac": held.to(loss.dtype)}


def _covariance(streams: Streams) -> Tensor:
    """Of each token's logprob and advantage, without gradient."""
    if not len(streams.new):
        return streams.advantages
    logprobs = streams.new.detach()
    return (logprobs - logprobs.mean()) * (streams.advantages - streams.advantages.mean())


def _count(tokens: int, options: Algorithm) -> int:
    return max(1, int(options.cov_ratio * tokens))
