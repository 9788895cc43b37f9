"""Plug-ins that were written for miles train here, unmodified: an engine, a router, a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.job import assert_nothing_left, run, values

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]

PLUGINS = Path(__file__).parents[1] / "plugins" / "written_for_miles.py"


def test_generate_reward_filter_and_post_process_of_miles(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    data, run_dir = tmp_path / "prompts.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"prompt": f"say {at}", "label": "zz"}) + "\n" for at in range(4)))
    paths = {
        "--custom-generate-function-path": "generate",
        "--custom-rm-path": "reward_func",
        "--dynamic-sampling-filter-path": "keep_some",
        "--custom-reward-post-process-path": "post_process",
        "--custom-tis-function-path": "truncated_importance",
    }
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(data), "--input-key", "prompt"]
    flags += ["--label-key", "label", "--run-dir", str(run_dir), "--device", "cpu", "--colocate"]
    flags += ["--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--num-rollout", "1"]
    flags += ["--rollout-max-response-len", "6", "--apply-chat-template", "--use-fault-tolerance"]
    flags += [word for flag, name in paths.items() for word in (flag, f"{PLUGINS}:{name}")]
    output = run("train", flags, mark=mark, log=tmp_path / "log", timeout=400)
    assert_nothing_left(mark)
    assert "ignored: --use-fault-tolerance: dead engines, workers and sessions are always replaced" in output
    assert len(values(run_dir, "train/loss")) == 1
    assert 0 <= values(run_dir, "rollout/reward")[0] <= 6
    assert values(run_dir, "agent/turns_mean") == [1.0]
    assert max(values(run_dir, "train/logprob_abs_diff"), default=0.0) <= 1e-3


def test_rollouts_of_a_prompt_are_judged_together(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    data, run_dir = tmp_path / "prompts.jsonl", tmp_path / "run"
    data.write_text(json.dumps({"input": "say", "label": "zz"}) + "\n")
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(data), "--run-dir", str(run_dir)]
    flags += ["--rollout-batch-size", "1", "--n-samples-per-prompt", "3", "--num-rollout", "1", "--device", "cpu"]
    flags += ["--rollout-max-response-len", "6", "--group-rm", "--custom-rm-path", f"{PLUGINS}:group_reward"]
    run("rollout", flags, mark=mark, log=tmp_path / "log", timeout=400)
    assert_nothing_left(mark)
    (reward,) = values(run_dir, "rollout/reward")
    assert reward == pytest.approx(round(reward * 3) / 3)
    assert reward >= 1 / 3
