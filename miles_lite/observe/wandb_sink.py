"""Metrics to Weights & Biases, one wandb run for a training run, also where that is resumed.

Invariant: everything wandb keeps locally lies in one folder, it learns no key from the command line, and starting and
finishing are bounded: a server that cannot be reached costs no run its start, and what could not be uploaded in time
stays on disk for `wandb sync`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from miles_lite.config.redaction import redacted_arguments
from miles_lite.config.tracking import Logging
from miles_lite.errors import UserError, user_error
from miles_lite.observe import wandb_samples
from miles_lite.report.metric_names import EVAL_STEP, ROLLOUT_STEP, TRAIN_STEP

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

START_SECONDS = 60.0
FINISH_SECONDS = 60.0
RUN_ID = "wandb_run_id"
"""In the run folder: the id of its wandb run."""
TABLE = "rollout/samples"

AXES = {
    ROLLOUT_STEP: ("rollout/*", "passrate/*", "agent/*", "session/*", "environment/*", "perf/*", "alarm/*"),
    TRAIN_STEP: ("train/*",),
    EVAL_STEP: ("eval/*",),
}
"""Which step each family of metrics is drawn over."""
NODE_METRICS = (
    r".*\.ray_node_(cpu_utilization|mem_used|mem_total|gpus_utilization|gram_used|disk_utilization_percentage)"
)
"""Of what Ray's node agents say, what wandb takes up among its system metrics."""


class WandbSink:
    """A wandb run, online or offline. Raises UserError when it cannot be started."""

    def __init__(self, options: Logging, *, config: Mapping[str, object], run_dir: Path, resumed: bool = False) -> None:
        """A run that is `resumed` goes on in the wandb run that its folder names."""
        missing = "--use-wandb needs the wandb package: pip install wandb, or leave --use-wandb out"
        with user_error(missing, ImportError):
            import wandb
        self._run_dir, self._every, self._failed = run_dir, options.wandb_table_interval, False
        self._shown: int | None = None
        self._argv, sys.argv = sys.argv, redacted_arguments(sys.argv)  # wandb notes it at its start, and later
        try:
            self._run = self._begun(options, config, _id(options, run_dir, resumed=resumed))
        except (wandb.Error, OSError) as error:
            sys.argv = self._argv
            raise UserError(
                f"wandb could not start ({options.wandb_mode}): {error}\n"
                "  Log in with `wandb login`, or write locally with --wandb-mode offline, or leave --use-wandb out."
            ) from error
        self.page = self._run.url
        (run_dir / RUN_ID).write_text(f"{self._run.id}\n")
        self._teardown = wandb.teardown
        for axis, families in AXES.items():
            self._run.define_metric(axis)
            for family in families:
                self._run.define_metric(family, step_metric=axis)

    def _begun(self, options: Logging, config: Mapping[str, object], run_id: str | None) -> wandb.Run:
        """Raises wandb.Error, OSError."""
        import wandb

        folder = wandb_dir(options, self._run_dir)
        (folder / "wandb").mkdir(mode=0o700, parents=True, exist_ok=True)

        def begin(mode: str) -> wandb.Run:
            return wandb.init(
                project=options.wandb_project,
                entity=options.wandb_team,
                group=options.wandb_group,
                name=self._run_dir.name,
                id=run_id,
                resume=None if run_id is None or mode == "offline" else "allow",
                mode=mode,  # type: ignore[arg-type]
                dir=str(folder),
                config=dict(config),
                settings=_settings(options),
            )

        try:
            return begin(options.wandb_mode)
        except wandb.errors.AuthenticationError:
            raise
        except wandb.errors.CommError as error:
            if options.wandb_mode != "online":
                raise
            told = str(error).splitlines()[0]
            log.warning("wandb cannot be reached, and the run is kept for `wandb sync` in %s/wandb: %s", folder, told)
            return begin("offline")

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        self._run.log({**metrics, step_key: step})

    def alert(self, title: str, text: str) -> None:
        """As the user has chosen in wandb: a mail, a message in Slack."""
        self._run.alert(title=title, text=text, level="WARN")

    def step_ended(self, step: int) -> None:
        """Now and then a table of the rollouts that were kept last."""
        if not self._every or (step + 1) % self._every:
            return
        import wandb

        newest = wandb_samples.newest_step(self._run_dir)
        if newest is not None and newest != self._shown:
            rows = wandb_samples.samples(self._run_dir, newest)
            self._run.log({TABLE: wandb.Table(columns=list(wandb_samples.COLUMNS), data=rows), ROLLOUT_STEP: step})
            self._shown = newest

    def failed(self) -> None:
        """The training run ends by an error: wandb says so, too."""
        self._failed = True

    def close(self) -> None:
        """Finish the run and wandb's service: `finish` alone returns before an offline run's file is whole."""
        try:
            self._run.finish(exit_code=int(self._failed))
        except TimeoutError as error:
            raise TimeoutError(
                f"what it did not take in {FINISH_SECONDS:g} s is kept: wandb sync {self._run.dir}/.."
            ) from error
        finally:
            self._teardown()
            sys.argv = self._argv


def _id(options: Logging, run_dir: Path, *, resumed: bool) -> str | None:
    """Of the wandb run to go on with; None for a new one."""
    if options.wandb_run_id is None and resumed and (run_dir / RUN_ID).is_file():
        return (run_dir / RUN_ID).read_text().strip() or None
    return options.wandb_run_id


def _settings(options: Logging) -> wandb.Settings:
    """wandb's own, with the pages on which Ray's nodes say how they are, where Ray runs."""
    import wandb

    settings = wandb.Settings(
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        console="off",
        quiet=True,
    )
    if pages := _node_pages():
        settings.x_stats_open_metrics_endpoints = pages
        settings.x_stats_open_metrics_filters = (NODE_METRICS,)
    if options.wandb_host is not None:
        settings.base_url = options.wandb_host
    if options.wandb_key is not None:
        settings.api_key = options.wandb_key
    return settings


def _node_pages() -> dict[str, str]:
    """Of the nodes that have joined, by name."""
    nodes = ray.nodes() if ray.is_initialized() else []
    return {
        f"{node['NodeName'].replace('.', '-')}": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node.get("MetricsExportPort")
    }


def wandb_dir(options: Logging, run_dir: Path) -> Path:
    """Where wandb keeps its folder `wandb`."""
    return run_dir if options.wandb_dir is None else Path(options.wandb_dir)


def wandb_folder(folder: Path) -> Path | None:
    """The newest wandb run of a `wandb_dir`; None when there is none."""
    folders = (folder / "wandb").glob("*run-*")
    return max((found for found in folders if found.is_dir()), key=lambda found: found.stat().st_mtime, default=None)
