"""Rollouts ahead of the trainer, on real parts: Ray, SGLang on CPU, agents, two train ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from miles_lite.rollout import dump
from tests.e2e.job import Prepared, assert_nothing_left, rows, run, start, values, wait_for
from tests.e2e.test_train import accounted, interrupted, last_saved

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS = 4


def overlapping(prepared: Prepared, run_dir: Path, *extra: str) -> list[str]:
    dumped = run_dir / "rollouts" / "{rollout_id}.pt"
    return prepared.flags(run_dir, "--use-rollout-logprobs", "--save-debug-rollout-data", str(dumped), *extra)


def ages(run_dir: Path, steps: int) -> dict[int, set[int]]:
    """By step, how many versions older than the trainer's its trained tokens are."""
    found: dict[int, set[int]] = {}
    for step in range(steps):
        groups = dump.read(run_dir / "rollouts" / f"{step}.pt")
        samples = [sample for group in groups for rollout in group.rollouts for sample in rollout.fetch()]
        found[step] = {step - int(version) for one in samples for version in one.weight_versions[one.loss_mask == 1]}
    return found


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_one_step_off_trains_while_rollouts_run_and_goes_on_after_a_kill_and_after_ctrl_c(
    end: signal.Signals, prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    save, log = tmp_path / "checkpoints", tmp_path / "log"
    bound = ["--max-weight-staleness", "1", "--save", str(save), "--load", str(save), "--save-interval", "1"]
    flags = overlapping(prepared, run_dir, *bound, "--num-rollout", str(STEPS))
    if end == signal.SIGINT:
        assert interrupted(flags, end, run_dir=run_dir, mark=mark, log=log) == last_saved(save)
    else:
        process = start("train", flags, mark=mark, log=log)
        latest = save / "latest_checkpointed_iteration.txt"
        wait_for("a checkpoint", latest.exists, timeout=300, process=process, log=log)
        process.kill()
        process.wait(60)
        assert_nothing_left(mark)
        state = json.loads((save / "rollout" / f"global_dataset_state_dict_{last_saved(save)}.json").read_text())
        assert state["accounts"]["started"] > state["accounts"]["trained"], "nothing ran ahead"

    shared = ["--update-weight-transfer-mode", "tensor", "--check-weight-update-equal"]
    run("train", [*flags, *shared], mark=mark, log=tmp_path / "log2")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert accounted(summary)
    assert summary["prompts_started"] == summary["prompts_trained"] == STEPS * 4
    assert summary["prompts_unused"] == 0
    assert last_saved(save) == STEPS - 1
    assert {int(row["train/step"]) for row in rows(run_dir) if "train/loss" in row} == set(range(STEPS))
    by_step = ages(run_dir, STEPS)
    assert max(set().union(*by_step.values())) == 1, "nothing overlapped"
    assert max(values(run_dir, "rollout/fully_async/max_staleness")) == 1
    assert max(values(run_dir, "rollout/fully_async/in_flight")) > 0
    trained = [group.prompt["row"] for step in range(STEPS) for group in dump.read(run_dir / "rollouts" / f"{step}.pt")]
    assert len(set(trained)) == STEPS * 4, "a prompt was trained twice"
    assert_nothing_left(mark)


@pytest.mark.slow
def test_how_many_rollouts_run_at_once_is_found(prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path) -> None:
    found = ["--rollout-concurrency", "auto", "--max-weight-staleness", "3", "--num-rollout", "8"]
    found += ["--eval-interval", "2", "--eval-prompt-data", "held", f"{prepared.folder / 'heldout.jsonl'}@[0:4]"]
    run("train", overlapping(prepared, run_dir, *found), mark=mark, log=tmp_path / "log")
    at_once = values(run_dir, "rollout/concurrency")
    assert at_once[0] >= 8
    assert max(at_once) > 8, "an engine whose cache is hardly used got no more"
    assert accounted(json.loads((run_dir / "summary.json").read_text()))
    evaluated = [row["eval/step"] for row in rows(run_dir) if "eval/held" in row]
    assert evaluated == [0, 2, 4, 6, 8]
    assert_nothing_left(mark)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["in_place", "retract", "abort"])
def test_weights_go_in_under_running_generations(
    mode: str, prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    bound = ["--max-weight-staleness", "3", "--pause-generation-mode", mode, "--num-rollout", "6"]
    run("train", overlapping(prepared, run_dir, *bound), mark=mark, log=tmp_path / "log")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert accounted(summary)
    assert summary["prompts_trained"] == 6 * 4
    assert summary["prompts_unused"] == 0
    assert max(set().union(*ages(run_dir, 6).values())) <= 3
    assert_nothing_left(mark)
