"""Learning rate as a pure function of the number of updates made; the count is all that a checkpoint keeps of it."""

from __future__ import annotations

import math

from miles_lite.config.training import Optimizer


def learning_rate(update: int, options: Optimizer, *, total: int | None) -> float:
    """The rate of update number `update` (from 0) of `total`.

    Linear warm-up over `lr_warmup_iters` updates, then constant, or down to `min_lr` at update `total`: on a line or
    on a half cosine (SGDR, arXiv:1608.03983, eq. 5). `total` may be None for a constant rate only.
    """
    warmup = options.lr_warmup_iters
    if update < warmup:
        return options.lr * (update + 1) / warmup
    if options.lr_decay_style == "constant":
        return options.lr
    assert total is not None, "a decaying learning rate needs the number of updates"
    progress = min(1.0, (update - warmup) / max(1, total - warmup))
    left = 1 - progress if options.lr_decay_style == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return options.min_lr + left * (options.lr - options.min_lr)
