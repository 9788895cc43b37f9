"""The clipped policy gradient, weighed by truncated importance with --use-tis."""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import clipped_policy_loss, truncated_importance


def policy_gradient(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """See `clipped_policy_loss` and `truncated_importance`."""
    loss, clipped = clipped_policy_loss(
        streams.logratio,
        streams.advantages,
        eps_clip=options.eps_clip,
        eps_clip_high=options.eps_clip_high,
        eps_clip_c=options.eps_clip_c,
    )
    metrics = {"pg_clipfrac": clipped}
    if options.use_tis:
        rollout = torch.where(streams.in_context, streams.rollout_logprobs, streams.old)
        metrics["tis"], metrics["tis_clipfrac"] = truncated_importance(
            streams.old, rollout, low=options.tis_clip_low, high=options.tis_clip
        )
        loss = loss * metrics["tis"]
    return loss, metrics
