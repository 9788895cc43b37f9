"""However ranks share a model, whatever loss and advantage: rewards rise on real engines, ranks and agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from miles_lite.init_model.build import init_model
from tests.e2e.job import ROOT, assert_nothing_left, run, values

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(700)]

EXAMPLE = ROOT / "examples" / "minimal.py"
WORDS = [f"say {first}{second} to me" for first in "bcdfgh" for second in "aeiou"]
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
}  # fmt: skip


def make_model(folder: Path, *, experts: bool) -> None:
    init_model(folder, corpus=WORDS, hidden=64, layers=2, heads=4, intermediate=128, vocab_size=300)
    if experts:
        dense = AutoConfig.from_pretrained(folder).to_dict()
        sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
        sizes |= {"tie_word_embeddings": False}  # as all Qwen3-MoE are, and as SGLang reads them
        known = {name: dense[name] for name in dense.keys() - {"model_type", "architectures", "transformers_version"}}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**known | sizes), dtype=torch.float32)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder)


@pytest.mark.parametrize("case", CASES)
def test_rewards_rise(case: str, tmp_path: Path, mark: str) -> None:
    make_model(tmp_path / "model", experts="experts" in case)
    rows = [{"input": word, "label": "aeiou"} for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--hf-checkpoint", str(tmp_path / "model"), "--prompt-data", str(tmp_path / "prompts.jsonl")]
    flags += ["--label-key", "label", "--custom-agent-function-path", f"{EXAMPLE}:agent"]
    flags += ["--custom-rm-path", f"{EXAMPLE}:reward", "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    flags += ["--colocate", "--rollout-num-gpus", "1", "--rollout-batch-size", "4", "--n-samples-per-prompt", "8"]
    flags += ["--num-rollout", "15", "--rollout-max-response-len", "8", "--lr", "5e-3", *CASES[case]]
    run("train", flags, mark=mark, log=tmp_path / "log", timeout=600)
    assert_nothing_left(mark)
    rewards = values(tmp_path / "run", "rollout/raw_reward")
    print(f"{case}: {[round(reward, 3) for reward in rewards]}")
    assert len(rewards) == 15
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    if case == "experts, routes replayed":
        assert sum(values(tmp_path / "run", "train/routes_missing")) == 0
