"""Losses by the name or path that --loss-type gives them: pure functions of packed token streams.

Invariant: a loss reduces, masks and weighs nothing; the learner does, the same for each. Names are those of
`config.algorithms.LOSSES`.
"""

from __future__ import annotations

from functools import cache

from miles_lite.hooks import LossFunction, load_hook


@cache
def load_loss(path: str) -> LossFunction:
    """The function at that import path. Raises UserError."""
    return load_hook(path, flag="--loss-type")
