"""However ranks share a model, whatever loss and advantage: rewards rise on real engines, ranks and agents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miles_lite.scheduler.schedule import depth_of
from miles_lite.train.loading import load_model
from tests.e2e.job import assert_nothing_left, run, values
from tests.e2e.letters import flags

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(700)]

TWO_RANKS = ["--actor-num-gpus-per-node", "2"]
CASES = {
    "tensor parallel": [*TWO_RANKS, "--tensor-model-parallel-size", "2"],
    "context parallel, trees": [*TWO_RANKS, "--context-parallel-size", "2"],
    "sharded, recomputed": [
        *TWO_RANKS, "--data-parallel-sharding-strategy", "optim_grads_params", "--recompute-granularity", "full",
    ],
    "experts, routes replayed": ["--use-rollout-routing-replay", "strict"],
    "gspo": ["--loss-type", "gspo", "--eps-clip", "4e-3", "--num-steps-per-rollout", "2"],
    "cispo": ["--loss-type", "cispo", "--num-steps-per-rollout", "2"],
    "rloo": ["--advantage-estimator", "rloo"],
    "one step off": ["--max-weight-staleness", "1", "--use-rollout-logprobs"],
    "three steps off": ["--max-weight-staleness", "3", "--use-rollout-logprobs"],
    "three steps off, in place": [
        "--max-weight-staleness", "3", "--use-rollout-logprobs", "--pause-generation-mode", "in_place",
    ],
    "three steps off, aborted": [
        "--max-weight-staleness", "3", "--use-rollout-logprobs", "--pause-generation-mode", "abort",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rewards_rise(case: str, tmp_path: Path, mark: str) -> None:
    bound = int(CASES[case][1]) if "off" in case else 0
    steps = 15 + 2 * bound  # so much later engines have what the trainer has learned
    learn(case, CASES[case], tmp_path, mark, experts=4 if "experts" in case else 0, steps=steps)
    if bound:
        oldest = max(values(tmp_path / "run", "rollout/fully_async/max_staleness"))
        assert depth_of(bound) <= oldest <= bound  # how much older than the depth is up to stragglers
    if case == "experts, routes replayed":
        assert sum(values(tmp_path / "run", "train/routes_missing")) == 0


def test_adapters_learn_engines_serve_them_and_peft_reads_them(tmp_path: Path, mark: str) -> None:
    saved = ["--save", str(tmp_path / "checkpoints"), "--save-hf", str(tmp_path / "hf")]
    adapters = ["--lora-rank", "16", "--lora-alpha", "64", "--lr", "1e-2"]
    learn("LoRA", [*adapters, *saved], tmp_path, mark, steps=30)  # the head of an untrained model stays untrained
    from peft import PeftModel  # after transformers, which a torchvision for GPUs would not let it find

    run_dir, words = tmp_path / "run", torch.arange(40)[None]
    assert max(values(run_dir, "train/train_rollout_logprob_abs_diff_max")) <= 1e-4, "engines serve the merged weights"
    read = PeftModel.from_pretrained(load_model(tmp_path / "model"), tmp_path / "hf" / "adapter")
    merged = load_model(tmp_path / "hf")
    with torch.no_grad():
        torch.testing.assert_close(read(words).logits, merged(words).logits, atol=1e-4, rtol=0)
        assert not torch.allclose(merged(words).logits, load_model(tmp_path / "model")(words).logits, atol=1e-2)
    served = max(run_dir.glob("weights/v*"), key=lambda folder: int(folder.name[1:]))
    assert (served / "model.safetensors").read_bytes() == (tmp_path / "hf" / "model.safetensors").read_bytes()


def learn(case: str, more: list[str], tmp_path: Path, mark: str, *, experts: int = 0, steps: int = 15) -> None:
    """Say words with vowels, which are rewarded: half as much again at the end as at first."""
    more = ["--rollout-batch-size", "4", "--n-samples-per-prompt", "8", "--num-rollout", str(steps), *more]
    run("train", flags(tmp_path, *more, experts=experts), mark=mark, log=tmp_path / "log", timeout=600)
    assert_nothing_left(mark)
    rewards = values(tmp_path / "run", "rollout/raw_reward")
    print(f"{case}: {[round(reward, 3) for reward in rewards]}")
    assert len(rewards) == steps
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
