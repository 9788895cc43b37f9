"""Algorithms in a learner: what they add up to, and that it does not depend on how tokens are laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from miles_lite.config.algorithms import ADVANTAGES, LOSSES, SFT
from miles_lite.config.training import Algorithm
from miles_lite.train import mesh
from miles_lite.train.credit import settle
from miles_lite.train.packing import Form, forward_passes, idle_pass
from miles_lite.train.passes import Pass
from tests.train.helpers import gradient, learner, make_batch, make_samples, shares_of
from tests.train.ranks import run

pytestmark = pytest.mark.usefixtures("process_group")
SETS = [
    ("--loss-type", "gspo", "--use-rollout-logprobs"),
    ("--loss-type", "gmpo", "--use-tis", "--tis-level", "geometric"),
    ("--advantage-estimator", "ppo", "--lambd", "0.9", "--kl-coef", "0.05"),
    ("--advantage-estimator", "reinforce_plus_plus", "--gamma", "0.9", "--kl-coef", "0.05"),
    ("--normalize-advantages", "--loss-reduction", "prompt", "--echo-coef", "0.1"),
    (
        "--loss-type",
        "sapo",
        "--use-rs",
        "--rs-level",
        "geometric",
        "--rs-lower-bound",
        "0.05",
        "--use-opsm",
        "--loss-reduction",
        "sample",
    ),
    ("--use-approximate-old-logprobs", "--use-tis", "--tis-mode", "mask", "--loss-reduction", "constant"),
]


@pytest.mark.parametrize("flags", SETS, ids=" ".join)
def test_how_samples_are_laid_out_changes_no_gradient(model_dir: Path, flags: tuple[str, ...]) -> None:
    samples, advantages = make_samples(2, 6), np.linspace(-1, 1, 6)
    gradients = []
    for micro_batches in ([[0, 1, 2, 3, 4, 5]], [[5], [3, 1], [], [0, 4, 2]]):
        trainer = learner(model_dir, *flags)
        metrics = trainer.train(make_batch(samples, advantages, steps=[micro_batches]))
        assert all(np.isfinite(value) for value in metrics.values())
        gradients.append(gradient(trainer))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != SFT])
def test_every_loss_trains_on_and_off_policy(model_dir: Path, name: str) -> None:
    batch = make_batch(make_samples(3, 4), [1, -1, 1, -1], steps=[[[0, 1]], [[2, 3]]])
    metrics = learner(model_dir, "--loss-type", name, "--lr", "0.05").train(batch)
    assert np.isfinite(metrics["train/loss"])
    assert metrics["train/grad_norm"] > 0


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "on_policy_distillation"])
def test_every_estimator_trains(model_dir: Path, name: str) -> None:
    metrics = learner(model_dir, "--advantage-estimator", name).train(make_batch(make_samples(3, 2), [1.0, -0.5]))
    assert metrics["train/grad_norm"] > 0


def test_a_value_head_learns_what_rollouts_earn_and_no_engine_gets_it(model_dir: Path) -> None:
    trainer = learner(model_dir, "--advantage-estimator", "ppo", "--lr", "0.02", "--value-clip", "10")
    batch = make_batch(make_samples(3, 4), [1.0, 0.0, 1.0, 0.0])
    first = trainer.train(batch)
    assert first["train/value_loss"] == pytest.approx(0.5), "it says 0 of returns that are 1 or 0"
    for _ in range(8):
        last = trainer.train(batch)
    assert last["train/value_loss"] < 0.5 * first["train/value_loss"]
    assert any(name.startswith("value.") for name in trainer.policy.state_dict())
    assert not any("value" in name for name in trainer.policy.weights())


def test_the_penalty_in_the_rewards_is_that_of_the_tokens(model_dir: Path, tmp_path: Path) -> None:
    """Of rewards 0 nothing is left but the penalty: -coefficient x (new - reference)."""
    other = learner(model_dir)
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.mul_(1.5)
    other.policy.model.save_pretrained(tmp_path)
    batch = make_batch(make_samples(4, 2), [0, 0])
    flags = ("--kl-coef", "0.5", "--ref-load", str(tmp_path), "--calculate-per-token-loss")
    trainer = learner(model_dir, *flags)
    (packed,) = forward_passes(batch, range(2), shares=shares_of(batch), limit=10**6, form=Form.PACKED)
    assert trainer.reference is not None
    with torch.no_grad():
        gap = trainer.policy(packed)[0] - trainer.reference(packed)[0]
    assert trainer.train(batch)["train/pg_loss"] == pytest.approx(0.5 * gap.mean().item(), rel=1e-4)


def test_tokens_that_are_imitated_add_to_the_loss(model_dir: Path) -> None:
    batch = make_batch(make_samples(4, 3), [1, -1, 0.5])
    plain, more = (learner(model_dir, *flags).train(batch) for flags in ((), ("--echo-coef", "0.1")))
    assert more["train/pg_loss"] == pytest.approx(plain["train/pg_loss"], abs=1e-6)
    assert more["train/echo_loss"] > 1
    assert more["train/loss"] == pytest.approx(plain["train/loss"] + 0.1 * more["train/echo_loss"], abs=1e-5)
    assert more["train/train_rollout_logprob_abs_diff"] == pytest.approx(plain["train/train_rollout_logprob_abs_diff"])


def whitened(indices: list[int], ranks: mesh.DataParallel) -> list[float]:
    samples = make_samples(5, 3)
    batch = make_batch([samples[index] for index in indices], [(1.0, -0.5, 3.0)[index] for index in indices])
    made = forward_passes(batch, range(len(indices)), shares=shares_of(batch), limit=10**6, form=Form.PACKED)
    passes = [Pass(packed) for packed in [*made, idle_pass(batch)]]
    settle(passes, Algorithm(normalize_advantages=True), ranks)
    return [value for each in passes if each.advantages is not None for value in each.advantages.tolist()]


def run_rank(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    mesh.join(store, rank=rank, ranks=ranks, device=torch.device("cpu"), host="127.0.0.1", timeout=60)
    shares = [[0], [1, 2]][rank]
    torch.save(whitened(shares, mesh.DataParallel()), out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.e2e
def test_ranks_that_share_a_batch_whiten_it_as_one(tmp_path: Path) -> None:
    run(run_rank, tmp_path, ranks=2, timeout=120)
    some, others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = whitened([0, 1, 2], mesh.DataParallel())
    assert sorted([*some, *others]) == pytest.approx(sorted(alone), abs=1e-6)
    assert np.mean(alone) == pytest.approx(0, abs=1e-6)
    assert np.var(alone) == pytest.approx(1, abs=1e-4)
