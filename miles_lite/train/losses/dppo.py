"""Divergence PPO: tokens that moved too far from the old policy, in the direction of their advantage, are left out.

"Rethinking the trust region in LLM reinforcement learning" (arXiv:2602.04879): how far is measured by a divergence of
the two Bernoulli distributions "this token or another", not by the ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams

LEAST = 1e-7
"""Probabilities are kept this far from 0 and 1."""


def total_variation(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-M r A, where M is 0 on tokens with |p_new - p_old| > dppo_tv."""
    new, old = streams.new.detach().exp(), streams.old.exp()
    return _masked(streams, (new - old).abs() > options.dppo_tv)


def kullback_leibler(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-M r A, where M is 0 on tokens with KL(Bernoulli(p_old) || Bernoulli(p_new)) > dppo_kl."""
    new = streams.new.detach().exp().clamp(LEAST, 1 - LEAST)
    old = streams.old.exp().clamp(LEAST, 1 - LEAST)
    divergence = old * (old / new).log() + (1 - old) * ((1 - old) / (1 - new)).log()
    return _masked(streams, divergence > options.dppo_kl)


def _masked(streams: Streams, far: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Without the tokens that are far, and that the step would take farther."""
    away = streams.logratio.detach() * streams.advantages > 0
    out = far & away
    loss = -streams.logratio.exp() * streams.advantages
    return torch.where(out, torch.zeros_like(loss), loss), {"pg_clipfrac": out.to(loss.dtype)}
