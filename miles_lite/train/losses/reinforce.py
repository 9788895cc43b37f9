"""REINFORCE: the policy gradient without a ratio (Williams, 1992)."""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams


def reinforce(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-A log p(token); nothing is clipped."""
    del options
    return -streams.advantages * streams.new, {"pg_clipfrac": torch.zeros_like(streams.new)}
