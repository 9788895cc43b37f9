from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.sample import NOT_SAMPLED, Sample, Status


def make_sample(mask: list[int], *, experts: bool = False) -> Sample:
    trained = np.array(mask, dtype=np.uint8)
    size = len(mask)
    return Sample(
        tokens=np.arange(size, dtype=np.int32),
        loss_mask=trained,
        logprobs=np.where(trained == 1, -0.5, 0.0).astype(np.float32),
        temperatures=np.ones(size, dtype=np.float32),
        weight_versions=np.where(trained == 1, 3, NOT_SAMPLED).astype(np.int32),
        routed_experts=np.zeros((max(0, size - 1), 2, 4), dtype=np.uint8) if experts else None,
    )


masks = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@given(masks, st.integers(0, 50), st.booleans())
def test_truncation_cuts_everything_aligned_to_tokens(mask: list[int], length: int, experts: bool) -> None:
    sample = make_sample(mask, experts=experts).validate()
    cut = sample.truncate(length).validate()
    assert len(cut) == min(length, len(mask))
    assert cut.trained_tokens == sum(mask[:length])
    if experts:
        assert cut.routed_experts is not None
        assert len(cut.routed_experts) == max(0, len(cut) - 1)
    assert (cut.status is Status.TRUNCATED) == (length < len(mask))
    record = cut.record()
    assert (record.length, record.trained_tokens) == (len(cut), cut.trained_tokens)
    assert record.weight_versions == ((3,) if cut.trained_tokens else ())


def test_truncation_refuses_a_negative_length() -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        make_sample([0, 1]).truncate(-1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", np.zeros(3, dtype=np.int64), "tokens is int64"),
        ("loss_mask", np.zeros(2, dtype=np.uint8), "loss_mask is uint8"),
        ("loss_mask", np.full(3, 2, dtype=np.uint8), "other than 0 and 1"),
        ("logprobs", np.array([0, np.nan, -1], dtype=np.float32), "finite"),
        ("logprobs", np.array([-1, -1, -1], dtype=np.float32), "outside the loss mask"),
        ("weight_versions", np.full(3, NOT_SAMPLED, dtype=np.int32), "no engine sampled"),
        ("temperatures", np.zeros(3, dtype=np.float32), "temperature <= 0"),
        ("routed_experts", np.zeros((3, 1, 1), dtype=np.uint8), "routed_experts has 3 rows for 3 tokens"),
    ],
)
def test_validate_names_the_broken_field(field: str, value: np.ndarray, message: str) -> None:
    sample = make_sample([0, 1, 1])
    setattr(sample, field, value)
    with pytest.raises(ValueError, match=message):
        sample.validate()
