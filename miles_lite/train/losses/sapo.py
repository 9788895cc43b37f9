"""Soft adaptive policy optimization: a smooth gate in the place of the clip (arXiv:2511.20347)."""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams


def sapo(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-f(r) A with f(r) = 4 / tau sigmoid(tau (r - 1)); tau is sapo_tau_pos where A > 0, else sapo_tau_neg.

    `pg_clipfrac` counts the tokens of which the gate lets through less than half the gradient.
    """
    ratio = streams.logratio.exp()
    tau = torch.where(streams.advantages > 0, options.sapo_tau_pos, options.sapo_tau_neg).to(ratio.dtype)
    gate = torch.sigmoid(tau * (ratio - 1))
    held = (4 * gate * (1 - gate)).detach() < 0.5
    return -4 / tau * gate * streams.advantages, {"pg_clipfrac": held.to(ratio.dtype)}
