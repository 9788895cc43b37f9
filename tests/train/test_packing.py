"""Packing never changes what is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.train.loading import load_model
from miles_lite.train.packing import MAX_PADDING, Form, buckets, check, forward_passes, idle_pass
from miles_lite.train.policy import Policy, choose_form
from tests.train.families import FAMILIES, furthest, gradients, make_model, obvious_gradients, obvious_logprobs
from tests.train.helpers import joined, make_batch, make_samples, shares_of


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 2000))
def test_buckets_hold_each_sequence_once_within_their_limits(lengths: list[int], limit: int) -> None:
    groups = list(buckets(lengths, limit=limit))
    assert sorted(index for group in groups for index in group) == [i for i, length in enumerate(lengths) if length]
    for group in groups:
        padded = max(lengths[index] for index in group) * len(group)
        assert len(group) == 1 or padded <= limit
        assert sum(lengths[index] for index in group) >= (1 - MAX_PADDING) * padded


def branching_samples() -> list[Sample]:
    """Of one agent: branches of branches, a sample that is the beginning of another, one whose only trained token
    stands behind what others share, two that are equal, and one that shares nothing."""
    trunk, stranger = make_samples(8, 2)
    other = make_samples(9, 1)[0]
    cut = trunk.prompt_length
    branch = joined(trunk, other, at=cut + 1)
    nested = joined(branch, make_samples(10, 1)[0], at=len(branch) - 2)
    one_token = trunk.truncate(cut + 1)
    return [nested, trunk, branch, trunk.truncate(len(trunk) - 1), one_token, branch, stranger]


WEIGHTS = (0.5, -1.0, 2.0, 0.25, -0.75, 1.5, 1.0)


def total(policy: Policy, form: Form, *, limit: int) -> float:
    """Σ weight x logprob over all trained tokens of `branching_samples`, with gradient."""
    samples = branching_samples()
    batch = make_batch(samples, WEIGHTS)
    result = 0.0
    for packed in forward_passes(batch, range(7), shares=shares_of(batch), limit=limit, form=form):
        logprobs, _ = policy(packed)
        loss = logprobs @ packed.advantages
        loss.backward()
        result += loss.item()
    return result


FORMS = (
    (Form.PADDED, 200, False),
    (Form.PACKED, 100, False),
    (Form.PACKED, 10**6, True),
    (Form.TREE, 60, True),
    (Form.TREE, 10**6, False),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_form_changes_the_loss_or_a_gradient(family: str) -> None:
    expected, by_sample = obvious_gradients(family, branching_samples(), WEIGHTS)
    for form, limit, recomputed in FORMS:
        model = make_model(family)
        if recomputed:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        assert total(Policy(model), form, limit=limit) == pytest.approx(expected, rel=1e-5)
        assert furthest(gradients(model), by_sample) <= 1e-5, (form, limit)


def test_a_prefix_is_computed_once_and_a_pair_scored_once() -> None:
    samples = branching_samples()
    batch = make_batch(samples, WEIGHTS)
    (tree,) = forward_passes(batch, range(7), shares=shares_of(batch), limit=10**6, form=Form.TREE)
    (row,) = forward_passes(batch, range(7), shares=shares_of(batch), limit=10**6, form=Form.PACKED)
    inputs = [sample.tokens[: np.flatnonzero(sample.loss_mask)[-1]].tolist() for sample in samples]
    assert row.tokens.numel() == sum(map(len, inputs))
    assert tree.tokens.numel() == len({tuple(each[: end + 1]) for each in inputs for end in range(len(each))})
    assert len(tree.states) < len(row.states) == len(row.copies) == len(tree.copies)
    assert tree.layout is not None
    assert row.layout is not None
    assert tree.layout.pairs < row.layout.pairs


def test_a_model_that_cannot_be_packed_runs_one_sequence_per_row(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("qwen3_next")
    policy, samples = Policy(model), make_samples(3, 5)
    assert choose_form([policy], trees=True) is Form.PADDED
    (line,) = [record.getMessage() for record in caplog.records]
    assert "one sequence per row" in line
    assert "linear_attention" in line
    batch = make_batch(samples, np.arange(5))
    with torch.no_grad():
        for packed in forward_passes(batch, range(5), shares=shares_of(batch), limit=10**6, form=Form.PADDED):
            logprobs, _ = policy(packed)
            for index in packed.advantages.unique().int().tolist():
                expected = obvious_logprobs(model, samples[index])
                torch.testing.assert_close(logprobs[packed.advantages == index], expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_hands_no_layout_to_its_attention_is_refused() -> None:
    model = make_model("llama")
    forward = model.model.forward
    model.model.forward = lambda segments, **given: forward(**given)
    batch = make_batch(make_samples(3, 2), [1.0, 1.0])
    (packed,) = forward_passes(batch, range(2), shares=shares_of(batch), limit=10**6, form=Form.TREE)
    with pytest.raises(UserError, match="llama does not tell its attention how rows are packed"):
        Policy(model)(packed)


def test_nothing_to_train_is_a_pass_all_the_same(model_dir: Path) -> None:
    packed = idle_pass(make_batch([], []))
    assert packed.sequences == 0
    policy = Policy(load_model(model_dir))
    logprobs, _ = policy(packed)
    (logprobs @ packed.weights).backward()
    assert all(not parameter.grad.any() for parameter in policy.parameters() if parameter.grad is not None)


def test_a_batch_that_breaks_its_contract_is_refused() -> None:
    samples = make_samples(5, 2)
    with pytest.raises(ValueError, match="advantages has shape"):
        check(make_batch(samples, [1.0]), vocabulary=512)
    first = make_batch(samples, [1, 1])
    first.rollout_tokens[1] = 0
    with pytest.raises(ValueError, match=r"sample 1: .* trained tokens, more than its rollout_tokens"):
        check(first, vocabulary=512)
    with pytest.raises(ValueError, match=r"sample 0: token 0 has the id \d+, and the model has 1 ids"):
        check(make_batch(samples, [1, 1]), vocabulary=1)
    samples[0].loss_mask[0], samples[0].weight_versions[0] = 1, 0
    with pytest.raises(ValueError, match="sample 0: its first token is trained"):
        check(make_batch(samples, [1, 1]), vocabulary=512)
