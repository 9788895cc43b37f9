"""The clipped policy gradient, of tokens' ratios or, with --importance-sampling-level sequence, of sequences'."""

from __future__ import annotations

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import clipped_policy_loss


def policy_gradient(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO, clip-higher and dual clip; see `clipped_policy_loss`."""
    loss, clipped = clipped_policy_loss(
        streams.logratio_of(options.level),
        streams.advantages,
        eps_clip=options.eps_clip,
        eps_clip_high=options.eps_clip_high,
        eps_clip_c=options.eps_clip_c,
    )
    return loss, {"pg_clipfrac": clipped}
