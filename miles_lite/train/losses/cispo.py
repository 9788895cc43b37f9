"""CISPO: REINFORCE with importance weights that are clipped and carry no gradient (MiniMax-M1, arXiv:2506.13585)."""

from __future__ import annotations

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams


def cispo(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-sg(clip(r, 1 - eps_clip, 1 + eps_clip_high)) A log p(token), eq. 4 and 5: every token keeps a gradient."""
    high = options.eps_clip if options.eps_clip_high is None else options.eps_clip_high
    ratio = streams.logratio.detach().exp()
    weights = ratio.clamp(1 - options.eps_clip, 1 + high)
    return -weights * streams.advantages * streams.new, {"pg_clipfrac": (weights != ratio).to(ratio.dtype)}
