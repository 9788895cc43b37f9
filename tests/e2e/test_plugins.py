"""Plug-ins that were written for miles train here, unmodified: an engine, a router, a trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.cli import main
from tests.e2e.job import assert_nothing_left, environment, run, values

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


@pytest.mark.slow
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


LAUNCHER = """
pkill -9 sglang
source "models/qwen3-4B.sh"
CKPT_ARGS=(
   --hf-checkpoint /root/Qwen3-4B
   #--load /root/old
   --ref-load /root/Qwen3-4B
)
ROLLOUT_ARGS=(
   --prompt-data /root/dapo-math-17k.jsonl
   --input-key prompt
   --label-key label
   --apply-chat-template
   --rollout-shuffle
   --rm-type deepscaler
   --num-rollout 3000
   --rollout-batch-size 32
   --n-samples-per-prompt 8
   --rollout-max-response-len 8192
   --rollout-temperature 1
   --global-batch-size 256
   --balance-data
)
PERF_ARGS=(
   --tensor-model-parallel-size 2
   --sequence-parallel
   --recompute-granularity full
   --recompute-method uniform
   --recompute-num-layers 1
   --use-dynamic-batch-size
   --max-tokens-per-gpu 9216
)
GRPO_ARGS=(
   --advantage-estimator grpo
   --use-kl-loss
   --kl-loss-coef 0.00
   --kl-loss-type low_var_kl
   --entropy-coef 0.00
   --eps-clip 0.2
   --eps-clip-high 0.28
)
OPTIMIZER_ARGS=(
   --optimizer adam
   --lr 1e-6
   --lr-decay-style constant
   --weight-decay 0.1
   --adam-beta1 0.9
   --adam-beta2 0.98
)
SGLANG_ARGS=(
   --rollout-num-gpus-per-engine 2
   --sglang-decode-log-interval 1000
)
MISC_ARGS=(
   --attention-dropout 0.0
   --accumulate-allreduce-grads-in-fp32
   --attention-backend flash
)
ray job submit --address="http://127.0.0.1:8265" -- python3 train.py --actor-num-nodes 1 \\
   --actor-num-gpus-per-node 8 \\
   --colocate \\
   ${MODEL_ARGS[@]} ${CKPT_ARGS[@]} ${ROLLOUT_ARGS[@]} ${PERF_ARGS[@]} \\
   ${GRPO_ARGS[@]} ${OPTIMIZER_ARGS[@]} ${SGLANG_ARGS[@]} ${MISC_ARGS[@]}
"""
SIZES = {
    "--num-rollout 3000": "--num-rollout 1",
    "--rollout-batch-size 32": "--rollout-batch-size 2",
    "--n-samples-per-prompt 8": "--n-samples-per-prompt 2",
    "--rollout-max-response-len 8192": "--rollout-max-response-len 6",
    "--global-batch-size 256": "--global-batch-size 4",
    "--tensor-model-parallel-size 2": "--tensor-model-parallel-size 1",
    "--rollout-num-gpus-per-engine 2": "--rollout-num-gpus-per-engine 1",
    "--actor-num-gpus-per-node 8": "--actor-num-gpus-per-node 1",
}


@pytest.mark.slow
def test_a_translated_launcher_trains_after_its_paths_and_sizes_are_replaced(
    tiny_model: Path, tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, theirs, ours = tmp_path / "p.jsonl", tmp_path / "run.sh", tmp_path / "ours.sh"
    data.write_text("".join(json.dumps({"prompt": f"{at} + 1?", "label": str(at + 1)}) + "\n" for at in range(4)))
    theirs.write_text(LAUNCHER)
    assert main(["migrate", str(theirs)]) == 0
    text = capsys.readouterr().out.replace("/root/Qwen3-4B", str(tiny_model))
    text = text.replace("/root/dapo-math-17k.jsonl", str(data))
    for there, here in SIZES.items():
        assert there in text
        text = text.replace(there, here)
    ours.write_text(text)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    argv = ["bash", str(ours), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    with (tmp_path / "log").open("wb") as log:
        variables = environment(mark) | {"PATH": path}
        done = subprocess.run(argv, env=variables, stdout=log, stderr=log, timeout=400, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-6000:]
    assert_nothing_left(mark)
    assert len(values(tmp_path / "run", "train/kl_loss")) == 1
