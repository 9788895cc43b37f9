"""Checkpoints are complete or absent, and continue bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader

from miles_lite.config.model import Checkpoint
from miles_lite.errors import UserError
from miles_lite.train import checkpoint, iterations
from miles_lite.train.batching import Batch
from miles_lite.train.data import Replicated
from miles_lite.train.policy import Policy
from miles_lite.weights.folder import copy_tokenizer
from miles_lite.weights.gather import Published
from miles_lite.weights.tensor_files import write_folder
from tests.train.helpers import learner, make_batch, make_samples, parameters, save_checkpoint

pytestmark = pytest.mark.usefixtures("process_group")

FLAGS = ("--lr-decay-style", "cosine", "--lr-warmup-iters", "2")


def step(seed: int) -> Batch:
    return make_batch(make_samples(seed, 4), [1, -1, 0.5, -0.5], steps=[[[0, 1]], [[2, 3]]], rollouts=[2, 2])


def test_a_resumed_run_continues_bit_for_bit(model_dir: Path, tmp_path: Path) -> None:
    straight = learner(model_dir, *FLAGS)
    straight.train(step(0))
    save_checkpoint(straight, tmp_path, iteration=7)
    draws = (torch.rand(2), np.random.rand(2))
    expected = straight.train(step(1))
    resumed = learner(model_dir, *FLAGS)
    assert checkpoint.load(resumed, tmp_path) == 7
    assert torch.equal(torch.rand(2), draws[0])
    assert np.array_equal(np.random.rand(2), draws[1])
    metrics = resumed.train(step(1))
    assert torch.equal(parameters(resumed), parameters(straight))
    assert resumed.updates == straight.updates == 4
    assert {k: v for k, v in metrics.items() if "perf" not in k} == {
        k: v for k, v in expected.items() if "perf" not in k
    }


def test_a_full_disk_is_called_one_and_what_was_saved_before_stays(
    model_dir: Path, tmp_path: Path, full_disk: Path
) -> None:
    trainer = learner(model_dir)
    trainer.train(step(0))
    with pytest.raises(UserError, match=r"the disk is full: the checkpoint of iteration 3 .*iter_0000003") as told:
        save_checkpoint(trainer, full_disk, iteration=3)
    assert len(str(told.value).splitlines()) == 2
    assert iterations.latest_iteration(full_disk) is None
    policy = trainer.policy
    with pytest.raises(UserError, match="the disk is full: the weights could not be written"):
        write_folder(Published(policy.model, policy.weights(), torch.float32), full_disk / "v1")
    assert not (full_disk / "v1").exists()


def test_what_a_killed_save_leaves_is_ignored_and_replaced(model_dir: Path, tmp_path: Path) -> None:
    trainer = learner(model_dir)
    trainer.train(step(0))
    save_checkpoint(trainer, tmp_path, iteration=1)
    torn = tmp_path / ".iter_0000002.partial"
    torn.mkdir()
    (torn / "rng_00000.pt").write_bytes(b"half")
    assert iterations.latest_iteration(tmp_path) == 1
    save_checkpoint(trainer, tmp_path, iteration=2)
    save_checkpoint(trainer, tmp_path, iteration=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000001",
        "iter_0000002",
        "latest_checkpointed_iteration.txt",
    ]
    assert checkpoint.load(learner(model_dir), tmp_path) == 2


def test_what_is_kept_when_a_newer_one_is_complete(model_dir: Path, tmp_path: Path) -> None:
    trainer = learner(model_dir)
    saver = checkpoint.Saver(Checkpoint(save_retain_interval=2))
    for iteration in range(4):
        saver.begin(trainer, tmp_path, iteration=iteration)
    saver.finish()
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000001", "iter_0000003"]
    saver.begin(trainer, tmp_path, iteration=4)
    saver.begin(trainer, tmp_path, iteration=5)
    saver.finish()
    assert sorted(path.name[-1] for path in tmp_path.glob("iter_*")) == ["1", "3", "5"]


def test_weights_without_the_optimizer(model_dir: Path, tmp_path: Path) -> None:
    trainer = learner(model_dir, *FLAGS)
    trainer.train(step(0))
    saver = checkpoint.Saver(Checkpoint(save_optim=False))
    saver.begin(trainer, tmp_path, iteration=3)
    saver.finish()
    with pytest.raises(UserError, match=r"saved with --no-save-optim: give --no-load-optim"):
        checkpoint.load(learner(model_dir, *FLAGS), tmp_path)
    for options, iteration in ((Checkpoint(load_optim=False), 3), (Checkpoint(finetune=True), None)):
        other = learner(model_dir, *FLAGS)
        assert checkpoint.load(other, tmp_path, options) == iteration
        assert torch.equal(parameters(other), parameters(trainer))
        assert other.updates == (0 if iteration is None else trainer.updates)
        assert not other.optimizer.state


def test_a_folder_without_checkpoint_is_no_error_but_a_broken_one_is(model_dir: Path, tmp_path: Path) -> None:
    assert checkpoint.load(learner(model_dir), tmp_path / "absent") is None
    (tmp_path / iterations.LATEST).write_text("3\n")
    with pytest.raises(UserError, match=r"names iteration 3, but .*iter_0000003 does not exist"):
        iterations.latest_iteration(tmp_path)
    (tmp_path / iterations.LATEST).write_text("release")
    with pytest.raises(UserError, match="expected an iteration number"):
        iterations.latest_iteration(tmp_path)


def _cut(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _without_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()


def _with_nan(folder: Path) -> None:
    """One number of what the optimizer remembers."""
    file = next(folder.glob("*.distcp"))
    whole = bytearray(file.read_bytes())
    told = FileSystemReader(folder).read_metadata()
    place = next(place for index, place in told.storage_data.items() if "exp_avg" in index.fqn and place.length > 1_000)
    at = place.offset + place.length // 2 // 4 * 4
    whole[at : at + 64] = struct.pack("<f", float("nan")) * 16
    file.write_bytes(whole)


@pytest.mark.parametrize("harm", [_cut, _without_metadata, _with_nan])
def test_a_damaged_checkpoint_is_refused_and_older_ones_are_named(
    harm: Callable[[Path], None], model_dir: Path, tmp_path: Path
) -> None:
    trainer = learner(model_dir)
    for iteration in (1, 2):
        trainer.train(step(iteration))
        save_checkpoint(trainer, tmp_path, iteration=iteration)
    harm(iterations.iteration_folder(tmp_path, 2))
    with pytest.raises(UserError, match=r"iter_0000002 cannot be loaded: it is damaged") as told:
        checkpoint.load(learner(model_dir), tmp_path)
    assert "write the number of one of iter_0000001" in str(told.value)


def test_a_checkpoint_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    save_checkpoint(learner(model_dir), tmp_path, iteration=1)
    with pytest.raises(UserError, match="of another model or other --lora-rank"):
        checkpoint.load(learner(model_dir, "--lora-rank", "2"), tmp_path)


def test_the_norm_of_many_gradients_is_exact() -> None:
    """In float32 a sum of 10^7 squares loses its fourth digit on a CPU."""
    strategy = Replicated()
    policy = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(10_000_000))])
    strategy.zero_grad(cast(Policy, policy))
    (parameter,) = policy
    assert parameter.grad is not None
    parameter.grad.copy_(torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)))
    expected = float(parameter.grad.double().norm())
    assert strategy.finish_gradients(cast(Policy, policy), max_norm=0.0) == pytest.approx(expected, rel=1e-7)


def test_exported_weights_load_in_transformers(model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = learner(model_dir)
    for seed in range(2):
        trainer.train(step(seed))
        weights = Published(trainer.policy.model, trainer.policy.weights(), torch.float32)
        write_folder(weights, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(load_file(model_dir / "model.safetensors"))
    copy_tokenizer(model_dir, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, trainer.policy.model.state_dict()[name]), name


def test_export_in_half_precision(model_dir: Path, tmp_path: Path) -> None:
    model = learner(model_dir).policy.model
    write_folder(Published(model, model.state_dict(), torch.bfloat16), tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
