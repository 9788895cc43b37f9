"""Metrics to Weights & Biases, one wandb run per start of a training run.

Invariant: everything wandb keeps locally lies in the run folder, it learns no key from the command line, and finishing
is bounded: what could not be uploaded in time stays on disk for `wandb sync`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from miles_lite.config.redaction import redacted_arguments
from miles_lite.config.tracking import Logging
from miles_lite.errors import UserError, user_error
from miles_lite.report.metric_names import EVAL_STEP, ROLLOUT_STEP, TRAIN_STEP

START_SECONDS = 120.0
FINISH_SECONDS = 60.0

AXES = {
    ROLLOUT_STEP: ("rollout/*", "passrate/*", "agent/*", "session/*", "perf/*", "alarm/*"),
    TRAIN_STEP: ("train/*",),
    EVAL_STEP: ("eval/*",),
}
"""Which step each family of metrics is drawn over."""


class WandbSink:
    """A wandb run, online or offline. Raises UserError when it cannot be started."""

    def __init__(self, options: Logging, *, config: Mapping[str, object], run_dir: Path) -> None:
        missing = "--use-wandb needs the wandb package: pip install wandb, or leave --use-wandb out"
        with user_error(missing, ImportError):
            import wandb
        (run_dir / "wandb").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._argv, sys.argv = sys.argv, redacted_arguments(sys.argv)  # wandb notes it at its start, and later
        settings = wandb.Settings(init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS, console="off", quiet=True)
        if options.wandb_host is not None:
            settings.base_url = options.wandb_host
        if options.wandb_key is not None:
            settings.api_key = options.wandb_key
        try:
            self._run = wandb.init(
                project=options.wandb_project,
                entity=options.wandb_team,
                group=options.wandb_group,
                name=run_dir.name,
                mode=options.wandb_mode,
                dir=str(run_dir),
                config=dict(config),
                settings=settings,
            )
        except (wandb.Error, OSError) as error:
            sys.argv = self._argv
            raise UserError(
                f"wandb could not start ({options.wandb_mode}): {error}\n"
                "  Log in with `wandb login`, or write locally with --wandb-mode offline, or leave --use-wandb out."
            ) from error
        self._teardown = wandb.teardown
        for axis, families in AXES.items():
            self._run.define_metric(axis)
            for family in families:
                self._run.define_metric(family, step_metric=axis)

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        self._run.log({**metrics, step_key: step})

    def close(self) -> None:
        """Finish the run and wandb's service: `finish` alone returns before an offline run's file is whole."""
        try:
            self._run.finish()
        finally:
            self._teardown()
            sys.argv = self._argv


def wandb_folder(run_dir: Path) -> Path | None:
    """The newest wandb run inside `run_dir`; None when there is none."""
    folders = (run_dir / "wandb").glob("*run-*")
    return max(
        (folder for folder in folders if folder.is_dir()), key=lambda folder: folder.stat().st_mtime, default=None
    )
