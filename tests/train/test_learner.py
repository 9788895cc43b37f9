"""One rank's training: what the loss is, and what it does not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from miles_lite.errors import UserError
from miles_lite.train.batching import Batch
from miles_lite.train.learner import BESIDE, MAXIMA
from tests.metric_names import undocumented, unlogged
from tests.models import make_tiny_moe
from tests.train.families import obvious_logprobs
from tests.train.helpers import gradient, learner, make_batch, make_samples, parameters

pytestmark = pytest.mark.usefixtures("process_group")


def test_loss_is_the_mean_over_rollouts_of_token_means(model_dir: Path) -> None:
    samples = make_samples(0, 4)
    advantages = [1.0, -0.5, 0.25, 2.0]
    batch = make_batch(samples, advantages, rollouts=[3])
    shared = samples[0].trained_tokens + samples[1].trained_tokens
    batch.rollout_tokens[:2] = shared
    trainer = learner(model_dir, "--clip-grad", "0")
    logprobs = [obvious_logprobs(trainer.policy.model, sample) for sample in samples]
    tokens = [shared, shared, samples[2].trained_tokens, samples[3].trained_tokens]
    parts = zip(logprobs, advantages, tokens, strict=True)
    loss = sum((-(lp * advantage).sum() / count for lp, advantage, count in parts), torch.zeros(())) / 3
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trainer.policy.parameters()))])
    metrics = trainer.train(batch)
    torch.testing.assert_close(gradient(trainer), expected, atol=1e-5, rtol=1e-4)
    assert metrics["train/grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    counts = [sample.trained_tokens for sample in samples]
    surrogate = -sum(a * n / t for a, n, t in zip(advantages, counts, tokens, strict=True)) / 3
    assert metrics["train/loss"] == metrics["train/pg_loss"] == pytest.approx(surrogate, abs=1e-5)
    gaps = torch.cat(logprobs).detach() - torch.tensor(np.concatenate([s.logprobs[s.loss_mask == 1] for s in samples]))
    assert metrics["train/train_rollout_logprob_abs_diff"] == pytest.approx(gaps.abs().mean().item(), abs=1e-4)
    assert metrics["train/train_rollout_logprob_abs_diff_max"] == pytest.approx(gaps.abs().max().item(), abs=1e-4)
    assert metrics["train/ppo_kl"] == 0
    assert metrics["train/ess_ratio"] == pytest.approx(1)


def test_a_metric_of_a_users_loss_is_added_to_none_of_ours(model_dir: Path, tmp_path: Path) -> None:
    published = learner(model_dir, "--use-rollout-logprobs").train(make_batch(make_samples(0, 2), [1.0, -1.0]))
    theirs = {"pg_clipfrac"}  # what the loss that they replace gives
    names = {name.removeprefix("train/") for name in published if name.startswith("train/")} - theirs
    assert {"loss", "grad_norm", "logprob_gap/numerics"} <= names
    for number, name in enumerate(names | set(BESIDE) | set(MAXIMA) | {"value_loss"}):
        loss = tmp_path / f"mine_{number}.py"
        loss.write_text(f"def run(streams, options, /):\n    return -streams.new, {{{name!r}: streams.new}}\n")
        with pytest.raises(UserError, match=f"its metric {name} has the name of another one"):
            learner(model_dir, "--loss-type", f"{loss}:run")


def test_per_token_loss_is_the_mean_over_tokens(model_dir: Path) -> None:
    samples = make_samples(1, 3)
    metrics = learner(model_dir, "--calculate-per-token-loss").train(make_batch(samples, [1.0, 0.0, 2.0]))
    counts = [sample.trained_tokens for sample in samples]
    assert metrics["train/loss"] == pytest.approx(-(counts[0] + 2 * counts[2]) / sum(counts), abs=1e-5)


def test_sft_loss_is_the_negative_log_likelihood_of_the_masked_tokens(model_dir: Path) -> None:
    samples = make_samples(4, 3)
    batch = make_batch(samples, [1.0] * 3)
    flags = ("--loss-type", "sft_loss", "--n-samples-per-prompt", "1")
    trainer = learner(model_dir, *flags)
    logprobs = [obvious_logprobs(trainer.policy.model, sample) for sample in samples]
    loss = -sum((logprob.mean() for logprob in logprobs), torch.zeros(())) / 3
    first = trainer.train(batch)
    assert first["train/loss"] == pytest.approx(loss.item(), abs=1e-4)
    said = {name for name in first if name.startswith("train/")}
    assert said == {f"train/{name}" for name in ("loss", "pg_loss", "entropy_loss", "grad_norm", "lr")}
    for _ in range(5):
        last = trainer.train(batch)
    assert last["train/loss"] < first["train/loss"] - 0.05


def test_the_documented_metrics_are_those_that_are_logged(model_dir: Path, tmp_path: Path) -> None:
    flags = "--use-tis --use-kl-loss --use-rs --use-opsm --echo-coef 0.1 --advantage-estimator ppo".split()
    flags += ["--opd-teacher", str(model_dir), "--use-rollout-routing-replay"]
    batch = make_batch(make_samples(2, 5), [1.0, -1.0, 0.5, 2.0, 1.0])
    batch.rollout_id = 1
    for sample in batch.samples[1:]:  # the first one's experts are not known, the second's weights are older
        sample.routed_experts = np.zeros((len(sample) - 1, 2, 2), np.uint8)
    for sample in (batch.samples[0], *batch.samples[2:]):
        sample.weight_versions[sample.loss_mask == 1] = 1
    batch.samples[2].metadata["merged_offcontext"] = [[0, len(batch.samples[2])]]
    metrics = learner(make_tiny_moe(tmp_path), *flags).train(batch)
    assert undocumented(metrics) == set()
    assert unlogged("train/", metrics) == set()


@pytest.mark.parametrize("flags", [(), ("--calculate-per-token-loss",), ("--entropy-coef", "0.1", "--use-tis")])
def test_micro_batches_do_not_change_the_gradient(model_dir: Path, flags: tuple[str, ...]) -> None:
    samples = make_samples(2, 6)
    advantages = np.linspace(-1, 1, 6)
    gradients = []
    for micro_batches in ([[0, 1, 2, 3, 4, 5]], [[5], [3, 1], [], [0, 4, 2]], [[0], [1], [2], [3], [4], [5]]):
        trainer = learner(model_dir, "--use-kl-loss", "--kl-loss-coef", "0.1", *flags)
        trainer.train(make_batch(samples, advantages, steps=[micro_batches]))
        gradients.append(gradient(trainer))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def two_steps(seed: int = 3) -> Batch:
    return make_batch(make_samples(seed, 4), [1, -1, 1, -1], steps=[[[0, 1]], [[2, 3]]], rollouts=[2, 2])


def test_later_steps_are_clipped_against_the_policy_before_the_first(model_dir: Path) -> None:
    trainer = learner(model_dir, "--lr", "0.1")
    before = torch.cat([obvious_logprobs(trainer.policy.model, sample) for sample in two_steps().samples[2:]]).detach()
    steps = trainer._prepare(two_steps())
    trainer._asked.fill(steps, trainer.strategy.mesh)
    assert steps[0][0].old is None
    old = torch.cat([each.old for each in steps[1] if each.old is not None])
    assert sorted(old.tolist()) == pytest.approx(sorted(before.tolist()), abs=1e-5)
    metrics = trainer.train(two_steps())
    assert metrics["train/pg_clipfrac"] > 0
    assert metrics["train/ess_ratio"] < 1
    assert trainer.updates == 2


def test_rollout_logprobs_may_be_the_old_ones(model_dir: Path) -> None:
    metrics = learner(model_dir, "--use-rollout-logprobs").train(two_steps())
    assert metrics["train/ppo_kl"] != 0
    assert metrics["train/train_rollout_logprob_abs_diff"] > 0


def test_kl_to_itself_is_zero_and_tis_weighs_the_engine_in(model_dir: Path) -> None:
    batch = make_batch(make_samples(4, 2), [1, 1])
    metrics = learner(model_dir, "--use-kl-loss", "--kl-loss-type", "low_var_kl", "--use-tis").train(batch)
    assert metrics["train/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["train/tis"] != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "flags", [("--eps-clip", "0.9"), ("--eps-clip-high", "5"), ("--eps-clip-c", "1.5"), ("--entropy-coef", "0.1")]
)
def test_each_flag_of_the_loss_changes_it(model_dir: Path, flags: tuple[str, ...]) -> None:
    off_policy = "--use-rollout-logprobs"
    batch = make_batch(make_samples(5, 4), [1, -1, 2, -2])
    for sample, logprob in zip(batch.samples, (-9, -9, 0, 0), strict=True):  # ratios far above 1, then far below
        sample.logprobs[sample.loss_mask == 1] = logprob
    given, without = (learner(model_dir, off_policy, *more).train(batch)["train/loss"] for more in (flags, ()))
    assert given != pytest.approx(without, rel=1e-4)


def test_tis_weights_stay_within_their_bounds(model_dir: Path) -> None:
    bounds = ("--tis-clip", "1.25", "--tis-clip-low", "1.25")
    metrics = learner(model_dir, "--use-tis", *bounds).train(make_batch(make_samples(4, 2), [1, 1]))
    assert metrics["train/tis"] == pytest.approx(1.25, abs=1e-5)


def test_the_kl_loss_is_to_the_model_of_ref_load(model_dir: Path, tmp_path: Path) -> None:
    other = learner(model_dir)
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.mul_(1.5)
    other.policy.model.save_pretrained(tmp_path)
    batch = make_batch(make_samples(4, 2), [1, 1])
    metrics = learner(model_dir, "--use-kl-loss", "--kl-loss-type", "k2", "--ref-load", str(tmp_path)).train(batch)
    assert metrics["train/kl_loss"] > 1e-4


def test_the_optimizer_is_the_one_that_the_flags_describe(model_dir: Path) -> None:
    flags = "--weight-decay 0.3 --adam-beta1 0.5 --adam-beta2 0.6 --adam-eps 1e-3".split()
    (group,) = learner(model_dir, *flags).optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.5, 0.6), 1e-3)


@pytest.mark.parametrize("flags", [("--use-tis",), ("--use-rollout-logprobs",)])
def test_tokens_of_another_context_are_trained_but_take_part_in_no_ratio(
    model_dir: Path, flags: tuple[str, ...]
) -> None:
    def train(spoil: float) -> tuple[dict[str, float], torch.Tensor]:
        samples = make_samples(4, 2)
        start = samples[0].prompt_length
        samples[0].logprobs[start : start + 2] += np.float32(-spoil)
        samples[0].metadata["merged_offcontext"] = [[start, start + 2]]
        trainer = learner(model_dir, *flags)
        return trainer.train(make_batch(samples, [1, 1])), gradient(trainer)

    (metrics, plain), (spoilt_metrics, spoilt) = train(0.0), train(7.0)
    assert torch.equal(plain, spoilt)
    for name in ("train/loss", "train/ppo_kl", "train/train_rollout_logprob_abs_diff"):
        assert metrics[name] == spoilt_metrics[name]
    marked = make_samples(4, 2)[0].prompt_length
    untrained = make_samples(4, 2)
    untrained[0].loss_mask[marked : marked + 2] = 0
    untrained[0].logprobs[marked : marked + 2] = 0
    trainer = learner(model_dir, *flags)
    trainer.train(make_batch(untrained, [1, 1]))
    assert not torch.equal(gradient(trainer), plain)


def test_clipping_scales_the_gradient(model_dir: Path) -> None:
    batch = make_batch(make_samples(5, 2), [50, 50])
    trainer = learner(model_dir, "--clip-grad", "0.5")
    assert trainer.train(batch)["train/grad_norm"] > 0.5
    assert float(gradient(trainer).norm()) == pytest.approx(0.5, rel=1e-5)


def test_a_broken_gradient_changes_nothing_and_says_so(model_dir: Path) -> None:
    trainer = learner(model_dir)
    before = parameters(trainer)
    with pytest.raises(UserError, match="gradient norm is nan at update 0"):
        trainer.train(make_batch(make_samples(6, 1), [float("nan")]))
    assert torch.equal(parameters(trainer), before)


def test_no_samples_and_no_steps(model_dir: Path) -> None:
    trainer = learner(model_dir)
    assert trainer.train(make_batch([], [], steps=[[[]]], rollouts=[0]))["train/loss"] == 0
    assert trainer.train(make_batch([], [], steps=[], rollouts=[]))["train/grad_norm"] == 0
    assert trainer.updates == 1


def test_reinforcement_raises_good_and_lowers_bad(model_dir: Path) -> None:
    samples = make_samples(7, 4)
    trainer = learner(model_dir, "--lr", "1e-2")
    model = trainer.policy.model
    before = [obvious_logprobs(model, sample).sum().item() for sample in samples]
    for _ in range(3):
        trainer.train(make_batch(samples, [1, -1, 1, -1]))
    after = [obvious_logprobs(model, sample).sum().item() for sample in samples]
    assert [np.sign(b - a) for a, b in zip(before, after, strict=True)] == [1, -1, 1, -1]
