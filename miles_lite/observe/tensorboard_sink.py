"""Metrics to tensorboard event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miles_lite.errors import user_error


class TensorboardSink:
    """Scalars under `folder`, over the step they are logged with. Raises UserError when tensorboard is missing."""

    def __init__(self, folder: Path) -> None:
        missing = "--use-tensorboard needs the tensorboard package: pip install tensorboard, or leave it out"
        with user_error(missing, ImportError):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(log_dir=str(folder))

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
