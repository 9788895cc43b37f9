"""What a run logs, and where to; who gets its spans."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from miles_lite.config.option import option
from miles_lite.errors import UserError
from miles_lite.process.addresses import http_url
from miles_lite.process.tracing import MISSING


@dataclass(frozen=True, kw_only=True)
class Logging:
    """logging: wandb, tensorboard, trajectories."""

    use_wandb: bool = option(False, help="log to wandb")
    wandb_project: str = option("miles_lite", help="wandb project", with_="use_wandb")
    wandb_group: str | None = option(None, help="wandb group", with_="use_wandb")
    wandb_team: str | None = option(None, help="wandb entity (default: the user's)", with_="use_wandb")
    wandb_host: str | None = option(
        None, help="URL of a wandb server (default: WANDB_BASE_URL, else wandb's own)", with_="use_wandb"
    )
    wandb_key: str | None = option(
        None,
        help="wandb's API key; better in WANDB_API_KEY, which no process list shows (default: its login)",
        with_="use_wandb",
    )
    wandb_mode: Literal["online", "offline", "disabled"] = option(
        "online", help="offline writes into the run folder", with_="use_wandb"
    )
    wandb_dir: str | None = option(
        None, help="folder for what wandb keeps locally (default: the run folder)", with_="use_wandb", path=True
    )
    wandb_run_id: str | None = option(
        None,
        help="go on in the wandb run of this id, or make it (default: a new one; a resumed run goes on in its own)",
        with_="use_wandb",
    )
    wandb_table_interval: int = option(
        10, help="every so many steps a table of rollouts that were kept; 0: none", least=0, with_="use_wandb"
    )
    use_tensorboard: bool = option(False, help="log to tensorboard in the run folder")
    reward_chance: float | None = option(None, help="expected reward of guessing, for the plot and the summary")
    log_passrate: bool = option(False, help="log pass@k")
    keep_trajectories: int = option(
        2,
        help="of each step, keep so many trajectories in the run folder's trajectories/, besides failures, the best, "
        "the worst and one of a group without gradient; 0: none",
        least=0,
    )
    trajectory_dir: str | None = option(None, help="write one .atraj file per rollout here", path=True)


def _collector(url: str | None) -> None:
    """Refuse what is no collector's URL, and spans that nobody can send."""
    if url is None:
        return
    http_url(url, given_as="--otlp-endpoint")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise UserError(MISSING)


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """tracing: spans of OpenTelemetry."""

    otlp_endpoint: str | None = option(
        None,
        help="URL of an OpenTelemetry collector (OTLP over HTTP, as http://localhost:4318), which gets a span of every "
        "rollout, turn, engine request, tool and weight update",
        check=_collector,
    )
