"""Why trainer and engine differ: every trained token has one cause, and the causes add up to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.sample import Sample
from miles_lite.train.building import build_learner
from miles_lite.train.gaps import CAUSES, IN_CONTEXT, LARGEST, SUMS, gaps, report
from miles_lite.train.packing import Form, Packed, forward_passes
from miles_lite.train.routing_replay import Routing
from tests.models import make_tiny_moe
from tests.train.families import obvious_logprobs
from tests.train.helpers import make_batch, make_config, make_samples, shares_of

ROUTING = Routing(layers=2, k=2)
STEP = 3
"""The training step, and the version of the weights that it trains."""


def samples_of(seed: int) -> list[Sample]:
    """One of each cause: none; older weights; experts unknown from the middle of its trained tokens on; a turn behind
    other ids."""
    samples = make_samples(seed, 4)
    for sample in samples:
        sample.weight_versions[sample.loss_mask == 1] = STEP
        sample.routed_experts = np.ones((len(sample) - 1, 2, 2), np.int32)
    numerics, stale, unrouted, off = samples
    assert numerics.routed_experts is not None
    assert unrouted.routed_experts is not None
    stale.weight_versions[stale.loss_mask == 1] = STEP - 1
    unrouted.routed_experts[unrouted.prompt_length] = -1
    off.metadata["merged_offcontext"] = [[off.prompt_length, len(off)]]
    return samples


def passes_of(samples: list[Sample]) -> list[Packed]:
    batch = make_batch(samples, [1.0] * len(samples))
    batch.rollout_id = STEP
    return forward_passes(
        batch, range(len(samples)), shares=shares_of(batch), limit=10**6, form=Form.TREE, routing=ROUTING
    )


@given(st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_shares_add_up_to_one_and_means_to_the_whole(seed: int, chance: int) -> None:
    samples, totals = samples_of(seed), dict.fromkeys([*SUMS, LARGEST], 0.0)
    differences = []
    for packed in passes_of(samples):
        said = packed.rollout_logprobs + torch.randn(
            len(packed.samples), generator=torch.Generator().manual_seed(chance)
        )
        sums, largest = gaps(packed, said)
        totals = {name: total + float(sums.get(name, 0.0)) for name, total in totals.items()}
        totals[LARGEST] = max(totals[LARGEST], float(largest))
        differences.append((said - packed.rollout_logprobs).abs())
    metrics = report(totals)
    shares = {cause: metrics[f"train/logprob_gap/{cause}_share"] for cause in CAUSES}
    means = {cause: metrics.get(f"train/logprob_gap/{cause}", 0.0) for cause in CAUSES}
    whole = torch.cat(differences)
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(shares[cause] * means[cause] for cause in CAUSES) == pytest.approx(float(whole.mean()), rel=1e-5)
    within = sum(shares[cause] for cause in IN_CONTEXT)
    mean = sum(shares[cause] * means[cause] for cause in IN_CONTEXT) / within
    assert metrics["train/train_rollout_logprob_abs_diff"] == pytest.approx(mean, rel=1e-5)
    assert all(shares.values())


def test_each_token_has_the_first_cause_that_fits() -> None:
    samples = samples_of(1)
    tokens = dict.fromkeys(CAUSES, 0.0)
    for packed in passes_of(samples):
        sums, _ = gaps(packed, packed.rollout_logprobs)
        tokens = {cause: count + float(sums[f"tokens_{cause}"]) for cause, count in tokens.items()}
    plain, stale, unrouted, off = (sample.trained_tokens for sample in samples)
    assert tokens == {"numerics": plain + 1, "staleness": stale, "routes": unrouted - 1, "off_context": off}


def test_no_tokens_have_no_cause_and_a_cause_of_no_token_has_no_mean() -> None:
    metrics = report(dict.fromkeys([*SUMS, LARGEST], 0.0))
    assert {name for name in metrics if "logprob_gap" in name} == {f"train/logprob_gap/{each}_share" for each in CAUSES}
    assert set(metrics.values()) == {0.0}


@pytest.mark.usefixtures("process_group")
def test_a_learner_tells_staleness_from_numerics(tmp_path: Path) -> None:
    """Engines that compute as the trainer does differ by rounding; what older ones said is off by what they said."""
    trainer = build_learner(make_config(make_tiny_moe(tmp_path)), device=torch.device("cpu"))
    samples = make_samples(4, 3)
    for sample, version in zip(samples, (STEP, STEP, STEP - 2), strict=True):
        trained = sample.loss_mask == 1
        with torch.no_grad():
            sample.logprobs[trained] = obvious_logprobs(trainer.policy.model, sample).numpy()
        sample.weight_versions[trained] = version
    samples[2].logprobs[samples[2].loss_mask == 1] -= np.float32(0.5)
    batch = make_batch(samples, [1.0, -1.0, 1.0])
    batch.rollout_id = STEP
    metrics = trainer.train(batch)
    assert metrics["train/logprob_gap/numerics"] < 1e-5
    assert metrics["train/logprob_gap/staleness"] == pytest.approx(0.5, abs=1e-5)
    share = samples[2].trained_tokens / sum(sample.trained_tokens for sample in samples)
    assert metrics["train/logprob_gap/staleness_share"] == pytest.approx(share)
    assert metrics["train/train_rollout_logprob_abs_diff"] == pytest.approx(0.5 * share, abs=1e-5)
