"""The end of a run: summary.json and the same on the terminal.

Invariant: a number that the run did not measure is null, never a guess.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from rich.console import Console
from rich.text import Text

from miles_lite.process.drafted import drafted
from miles_lite.report import metric_names as names
from miles_lite.report.history import read_history, series

Summary = dict[str, float | int | str | None]
EDGE = 5
"""How many rollouts at the beginning and the end of a run the summary averages."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of every prompt group; at the end of a run started = trained + filtered + failed + quarantined +
    unused."""

    prompts_started: int
    prompts_trained: int
    prompts_filtered: int
    prompts_failed: int
    prompts_quarantined: int
    prompts_unused: int
    rollouts_failed: int


def build_summary(
    metrics_jsonl: Path,
    *,
    counts: Counts,
    ended: str = "well",
    seconds: float,
    chance: float | None,
    heldout: str | None,
    restarts: int = 0,
) -> Summary:
    """The fields of summary.json.

    ended     "well", or "interrupted" by a person: then `prompts_unused` counts what was under way, too
    seconds   wall time of the run; chance: the expected reward of an agent that guesses
    restarts  how often it went on after it had lost a process that it cannot do without
    heldout   name of the evaluation dataset that heldout_first and heldout_last are about

    Rewards are means before filtering, over the first and last EDGE rollouts; logprob_gap_max is over all trained
    tokens, in nats; weight_update_seconds the median, pause included; overhead_share a share of all steps' time.
    """
    rows = read_history(metrics_jsonl)
    rewards = list(series(rows, names.REWARD, step_key=names.ROLLOUT_STEP).values())
    held = list(series(rows, names.heldout(heldout or ""), step_key=names.EVAL_STEP).values())
    gaps = series(rows, names.LOGPROB_GAP_MAX, step_key=names.TRAIN_STEP).values()
    updates = series(rows, names.UPDATE_WEIGHTS_TIME, step_key=names.ROLLOUT_STEP).values()
    steps = series(rows, names.STEP_TIME, step_key=names.ROLLOUT_STEP)
    idle = series(rows, names.OVERHEAD_TIME, step_key=names.ROLLOUT_STEP)
    measured = sum(steps[step] for step in idle if step in steps)
    return {
        "ended": ended,
        "reward_first5": _mean(rewards[:EDGE]),
        "reward_last5": _mean(rewards[-EDGE:]),
        "reward_chance": chance,
        "heldout_first": held[0] if held else None,
        "heldout_last": held[-1] if held else None,
        "steps": len(rewards),
        "seconds": round(seconds, 1),
        "restarts": restarts,
        "logprob_gap_max": max(gaps, default=None),
        "weight_update_seconds": median(updates) if updates else None,
        "weight_update_seconds_max": max(updates, default=None),
        "overhead_share": sum(idle.values()) / measured if measured else None,
        **asdict(counts),
    }


def write_summary(summary: Mapping[str, object], path: Path) -> None:
    """Write summary.json whole or not at all."""
    with drafted(path) as draft:
        draft.write_text(json.dumps(summary, indent=2) + "\n")


def print_summary(
    summary: Summary,
    *,
    run_dir: Path,
    png: Path | None,
    wandb: Path | None = None,
    console: Console | None = None,
) -> None:
    """The summary for a reader: what was learned, what it cost, where everything lies; `wandb`: the folder of its wandb
    run."""
    console = console or Console(soft_wrap=True)
    lines = _lines(summary, run_dir=run_dir, png=png, wandb=wandb)
    wide = max(len(title) for title, _ in lines) + 2
    console.print(Text("run summary", "italic"), soft_wrap=True)
    for title, value in lines:  # a path or a command that is broken into lines cannot be taken from there
        console.print(Text.assemble((title.ljust(wide), "dim"), value), soft_wrap=True)


def _lines(summary: Summary, *, run_dir: Path, png: Path | None, wandb: Path | None) -> list[tuple[str, str]]:
    shown = {name: _form(value) for name, value in summary.items()}
    ended = ", ".join(
        f"{shown[f'prompts_{end}']} {end}" for end in ("trained", "filtered", "failed", "quarantined", "unused")
    )
    lines = [
        ("reward", f"{shown['reward_first5']} -> {shown['reward_last5']}  (chance {shown['reward_chance']})"),
        ("held-out reward", f"{shown['heldout_first']} -> {shown['heldout_last']}"),
        ("steps", f"{shown['steps']} in {shown['seconds']} s, {shown['restarts']} restarts"),
        ("logprob gap, max", shown["logprob_gap_max"]),
        ("weight update", f"{shown['weight_update_seconds']} s"),
        ("overhead", f"{shown['overhead_share']} of step time"),
        ("prompts", f"{shown['prompts_started']} started: {ended}"),
        ("rollouts failed", shown["rollouts_failed"]),
        ("run folder", str(run_dir)),
    ]
    lines += [("reward curve", str(png))] if png is not None else []
    lines += [("wandb run", f"{wandb}  (upload: wandb sync)")] if wandb and "offline" in wandb.name else []
    return [*lines, ("its page", f"miles-lite report {shlex.quote(str(run_dir))}")]


def _form(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
