"""LoRA: what is trained, what leaves, and what is left as it was."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miles_lite.config.lora import LoRA
from miles_lite.errors import UserError
from miles_lite.train import adapters, checkpoint
from miles_lite.train.building import build_learner
from miles_lite.train.data import Replicated
from miles_lite.train.learner import Learner
from miles_lite.train.loading import load_model
from miles_lite.weights.gather import Published
from miles_lite.weights.tensor_files import write_folder
from tests.models import make_tiny_moe
from tests.train.helpers import make_batch, make_config, make_samples, save_checkpoint

pytestmark = pytest.mark.usefixtures("process_group")
CPU = torch.device("cpu")
RANK = ("--lora-rank", "4", "--lora-alpha", "8", "--lr", "1e-2")
KL = ("--use-kl-loss", "--kl-loss-coef", "0.1")


def learner(model_dir: Path, *flags: str) -> Learner:
    return build_learner(make_config(model_dir, *flags), device=CPU)


def train(trained: Learner, steps: int = 2) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for seed in range(steps):
        metrics = trained.train(make_batch(make_samples(seed, 4), [1.0, -1.0, 0.5, -0.5]))
    return {name: value for name, value in metrics.items() if name.startswith("train/")}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(torch.arange(20)[None]).logits
    return result


def test_only_adapters_are_trained_and_engines_get_them_merged(model_dir: Path, tmp_path: Path) -> None:
    trained = learner(model_dir, *RANK)
    loaded = load_model(model_dir)
    before = logits(loaded)
    assert torch.equal(logits(trained.policy.model), before)
    train(trained)
    model = trained.policy.model
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    with adapters.disabled(model):
        assert torch.equal(logits(model), before)
    weights = adapters.merged(model, trained.policy.weights())
    with contextlib.closing(Published(model, weights, torch.float32)) as published:
        write_folder(published, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), after, atol=1e-5, rtol=0)


def test_peft_reads_what_is_saved(model_dir: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trained = learner(model_dir, *RANK, "--target-modules", "q_proj", "down_proj")
    train(trained)
    adapters.save_adapter(trained.policy.model, trained.policy.weights(), tmp_path)
    read = PeftModel.from_pretrained(load_model(model_dir), tmp_path)
    assert torch.equal(logits(read), logits(trained.policy.model))
    assert {name.rsplit(".", 1)[-1] for name in adapters.layers(trained.policy.model)} == {"q_proj", "down_proj"}


def test_the_reference_is_the_model_without_its_adapters(model_dir: Path) -> None:
    free = learner(model_dir, *RANK, *KL)
    held = learner(model_dir, *RANK, *KL, "--ref-load", str(model_dir))
    assert isinstance(free.reference, adapters.WithoutAdapters)
    assert not isinstance(held.reference, adapters.WithoutAdapters)
    metrics = train(free)
    assert metrics == train(held)
    assert metrics["train/kl_loss"] != 0
    free.reference.to(torch.float64)
    assert {each.dtype for each in free.policy.parameters()} == {torch.float32}


def test_a_resumed_run_continues_bit_for_bit(model_dir: Path, tmp_path: Path) -> None:
    straight = learner(model_dir, *RANK)
    train(straight)
    save_checkpoint(straight, tmp_path, iteration=3)
    resumed = learner(model_dir, *RANK)
    assert checkpoint.load(resumed, tmp_path) == 3
    assert train(resumed) == train(straight)
    for one, other in zip(resumed.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dropout_is_for_gradients_alone(model_dir: Path) -> None:
    options = LoRA(lora_rank=4, lora_dropout=0.5)
    policy = Replicated().load(model_dir, lora=options)
    with torch.no_grad():
        for layer in adapters.layers(policy.model).values():
            layer.lora_B[adapters.NAME].weight.fill_(0.1)
    assert torch.equal(logits(policy.model), logits(policy.model))
    drawn = [policy.model(torch.arange(20)[None]).logits for _ in range(2)]
    assert not torch.equal(*drawn)
    plain = dataclasses.replace(options, lora_dropout=0.0)
    assert not any(isinstance(each, adapters.Dropout) for each in Replicated().load(model_dir, lora=plain).modules())


def test_bad_options_are_refused(model_dir: Path) -> None:
    with pytest.raises(UserError, match="--target-modules nothing_proj: "):
        learner(model_dir, *RANK, "--target-modules", "nothing_proj")
    with pytest.raises(UserError, match="needs --lora-rank"):
        make_config(model_dir, "--lora-alpha", "8")


def test_experts_that_are_one_tensor_get_no_adapters(tmp_path: Path) -> None:
    model = make_tiny_moe(tmp_path)
    trained = learner(model, *RANK)
    train(trained, steps=1)
    assert {name.rsplit(".", 1)[-1] for name in adapters.layers(trained.policy.model)} == {
        f"{each}_proj" for each in "qkvo"
    }
    merged = adapters.merged(trained.policy.model, trained.policy.weights())
    assert merged.keys() == load_model(model).state_dict().keys()
    with pytest.raises(UserError, match=r"mlp\.experts is no linear layer"):
        learner(model, *RANK, "--target-modules", "q_proj", "down_proj")
