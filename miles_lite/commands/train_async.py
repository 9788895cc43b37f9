"""`miles-lite train-async`, which others call `train_async.py`: `miles-lite train`, and rollouts one step ahead of the
trainer where the flags do not say how far."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.commands import train
from miles_lite.config.options import Config


def main(argv: Sequence[str]) -> int:
    """Parse flags and train; the exit code. Raises UserError."""
    return train.main(argv, prog="miles-lite train-async", settled=Config.ahead)
