"""The end of a run: summary.json and the reward curve, from a metrics file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from miles_lite.observe.sinks import JsonlSink
from miles_lite.observe.summary import Counts, build_summary, print_summary, write_summary
from miles_lite.observe.wandb_sink import wandb_folder
from miles_lite.report.plots import reward_curve

COUNTS = Counts(
    prompts_started=100,
    prompts_trained=80,
    prompts_filtered=15,
    prompts_failed=2,
    prompts_quarantined=0,
    prompts_unused=3,
    rollouts_failed=9,
)


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step in range(10):
        perf = {"perf/step_time": 10.0, "perf/overhead_time": 0.5, "perf/update_weights_time": 0.1 * (step + 1)}
        sink.log({"rollout/reward_unfiltered": step / 10, **perf}, step=step, step_key="rollout/step")
        sink.log({"train/train_rollout_logprob_abs_diff_max": 1e-6 * step}, step=step, step_key="train/step")
        if step in (0, 9):
            held = {"eval/held": 0.2 + step / 20, "eval/held-none_reward_ratio": 0.0}
            sink.log(held, step=step, step_key="eval/step")
    sink.close()
    return tmp_path / "metrics.jsonl"


def test_summary_by_hand(metrics: Path) -> None:
    summary = build_summary(metrics, counts=COUNTS, seconds=101.26, chance=0.25, heldout="held")
    assert summary == {
        "ended": "well",
        "reward_first5": pytest.approx(0.2),
        "reward_last5": pytest.approx(0.7),
        "reward_chance": 0.25,
        "heldout_first": pytest.approx(0.2),
        "heldout_last": pytest.approx(0.65),
        "steps": 10,
        "seconds": 101.3,
        "restarts": 0,
        "logprob_gap_max": pytest.approx(9e-6),
        "weight_update_seconds": pytest.approx(0.55),
        "weight_update_seconds_max": pytest.approx(1.0),
        "overhead_share": pytest.approx(0.05),
        "prompts_started": 100,
        "prompts_trained": 80,
        "prompts_filtered": 15,
        "prompts_failed": 2,
        "prompts_quarantined": 0,
        "prompts_unused": 3,
        "rollouts_failed": 9,
    }


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    summary = build_summary(tmp_path / "none.jsonl", counts=COUNTS, seconds=1.0, chance=None, heldout=None)
    unmeasured = {name for name, value in summary.items() if value is None}
    assert unmeasured == {
        "reward_first5",
        "reward_last5",
        "reward_chance",
        "heldout_first",
        "heldout_last",
        "logprob_gap_max",
        "weight_update_seconds",
        "weight_update_seconds_max",
        "overhead_share",
    }
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_printed_summary_names_every_place(metrics: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    out = io.StringIO()
    summary = build_summary(metrics, counts=COUNTS, seconds=1234.0, chance=0.25, heldout="held")
    png, wandb = tmp_path / "reward.png", wandb_folder(tmp_path)
    print_summary(summary, run_dir=tmp_path, png=png, wandb=wandb, console=Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    whole = (str(tmp_path), str(png), f"{wandb}  (upload: wandb sync)", f"miles-lite report {tmp_path}")
    for part in (*whole, "0.2 -> 0.7", "1234 s", "100 started"):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize("chance", [None, 0.25])
def test_the_reward_curve_is_a_picture(metrics: Path, tmp_path: Path, chance: float | None) -> None:
    png = tmp_path / "plots" / "reward.png"
    reward_curve(metrics, png, chance=chance, title="quickstart")
    assert matplotlib.image.imread(png).shape[:2] == (720, 1280)


def test_a_run_without_rewards_still_has_a_picture(tmp_path: Path) -> None:
    reward_curve(tmp_path / "none.jsonl", tmp_path / "reward.png", chance=None, title="stopped early")
    assert (tmp_path / "reward.png").stat().st_size > 0
