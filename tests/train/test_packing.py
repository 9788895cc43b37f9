"""Packing never changes what is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.sample import Sample
from miles_lite.train import policy as policy_module
from miles_lite.train.packing import MAX_PADDING, buckets, check, forward_passes, pack
from miles_lite.train.policy import Policy, load_model
from tests.train.helpers import gradient_of, make_batch, make_samples, shares_of


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 2000))
def test_buckets_hold_each_sequence_once_within_their_limits(lengths: list[int], limit: int) -> None:
    groups = list(buckets(lengths, limit=limit))
    assert sorted(index for group in groups for index in group) == [i for i, length in enumerate(lengths) if length]
    for group in groups:
        padded = max(lengths[index] for index in group) * len(group)
        assert len(group) == 1 or padded <= limit
        assert sum(lengths[index] for index in group) >= (1 - MAX_PADDING) * padded


def naive_logprobs(model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """transformers' own logits, one sample at a time, without any of our code."""
    ids = torch.tensor(sample.tokens[None].astype(np.int64))
    logits = model(input_ids=ids).logits[0, :-1] / torch.tensor(sample.temperatures[1:, None])
    logprobs = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1)
    return logprobs[torch.tensor(sample.loss_mask[1:]) == 1]


def test_packed_logprobs_equal_one_by_one(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(model_dir)
    samples = make_samples(3, 12)
    batch = make_batch(samples, np.arange(12))
    passes = forward_passes(batch, range(12), shares=shares_of(batch), limit=200)
    assert len(passes) < 12
    with torch.no_grad():
        expected = {index: naive_logprobs(model, sample) for index, sample in enumerate(samples)}
        for chunk in (policy_module.CHUNK_ELEMENTS, 5 * 288):
            monkeypatch.setattr(policy_module, "CHUNK_ELEMENTS", chunk)
            for packed in passes:
                logprobs, entropy = Policy(model)(packed)
                assert bool((entropy > 0).all())
                for index in packed.advantages.unique().int().tolist():
                    torch.testing.assert_close(
                        logprobs[packed.advantages == index], expected[index], atol=1e-5, rtol=1e-5
                    )


def test_chunks_have_the_same_gradient(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(load_model(model_dir))
    batch = make_batch(make_samples(4, 3), [1, 2, 3])
    packed = pack(batch, range(3), shares=shares_of(batch))

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        logprobs, entropy = policy(packed, entropy_gradient=True)
        (logprobs.sum() + entropy.sum()).backward()
        return gradient_of(policy.parameters())

    whole = gradient()
    monkeypatch.setattr(policy_module, "CHUNK_ELEMENTS", 3 * policy.vocab_size)
    torch.testing.assert_close(gradient(), whole, atol=1e-4, rtol=1e-4)


def test_nothing_to_train_is_a_pass_all_the_same(model_dir: Path) -> None:
    packed = pack(make_batch([], []), [], shares=[])
    assert packed.sequences == 0
    policy = Policy(load_model(model_dir))
    logprobs, _ = policy(packed)
    (logprobs @ packed.weights).backward()
    assert all(not parameter.grad.any() for parameter in policy.parameters() if parameter.grad is not None)


def test_a_batch_that_breaks_its_contract_is_refused() -> None:
    samples = make_samples(5, 2)
    with pytest.raises(ValueError, match="advantages has shape"):
        check(make_batch(samples, [1.0]))
    first = make_batch(samples, [1, 1])
    first.rollout_tokens[1] = 0
    with pytest.raises(ValueError, match=r"sample 1: .* trained tokens, more than its rollout_tokens"):
        check(first)
    samples[0].loss_mask[0], samples[0].weight_versions[0] = 1, 0
    with pytest.raises(ValueError, match="sample 0: its first token is trained"):
        check(make_batch(samples, [1, 1]))
