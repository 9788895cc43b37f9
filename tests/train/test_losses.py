"""Losses against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.choices import KLType
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.train.losses import terms as losses
from miles_lite.train.losses.objective import objective
from tests.train.helpers import make_streams


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_log_ratio_is_clamped() -> None:
    assert losses.log_ratio(t(0.0, -50.0, -1.0), t(-30.0, 0.0, -1.5)).tolist() == [20.0, -20.0, 0.5]


def test_clipped_policy_loss() -> None:
    logratio = t(math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5), 0.0)
    loss, clipped = losses.clipped_policy_loss(logratio, t(1, -1, 1, -1, 2), eps_clip=0.2, eps_clip_high=0.28)
    assert torch.allclose(loss, t(-1.28, 1.5, -0.5, 0.8, -2.0))
    assert clipped.tolist() == [1, 0, 0, 1, 0]


def test_upper_clip_defaults_to_the_lower() -> None:
    loss, _ = losses.clipped_policy_loss(t(1.0), t(1.0), eps_clip=0.2)
    assert torch.allclose(loss, t(-1.2))


def test_dual_clip_bounds_negative_advantages_only() -> None:
    loss, _ = losses.clipped_policy_loss(t(math.log(9), math.log(9)), t(-1, 1), eps_clip=0.2, eps_clip_c=3.0)
    assert torch.allclose(loss, t(3.0, -1.2))


def test_no_gradient_flows_through_a_clipped_token() -> None:
    logratio = t(math.log(1.5), 0.0).requires_grad_()
    losses.clipped_policy_loss(logratio, t(1, 1), eps_clip=0.2)[0].sum().backward()
    assert logratio.grad is not None
    assert torch.allclose(logratio.grad, t(0.0, -1.0))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(KLType.K1, 0.5), (KLType.K2, 0.125), (KLType.K3, math.exp(-0.5) - 0.5), (KLType.LOW_VAR, math.exp(-0.5) - 0.5)],
)
def test_kl_estimators(kind: KLType, expected: float) -> None:
    assert losses.kl_estimate(t(-1.0), t(-1.5), kind=kind).item() == pytest.approx(expected, abs=1e-6)


def test_low_var_kl_is_clamped() -> None:
    assert losses.kl_estimate(t(-40.0, 0.0), t(0.0, -40.0), kind=KLType.LOW_VAR).tolist() == [10.0, 10.0]


@given(st.floats(-15, 0), st.floats(-15, 0))
def test_k2_and_k3_are_never_negative(new: float, reference: float) -> None:
    for kind in (KLType.K2, KLType.K3, KLType.LOW_VAR):
        assert losses.kl_estimate(t(new), t(reference), kind=kind).item() >= -1e-6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("streams.new", r"returned Tensor: expected \(loss, metrics\)"),
        ("(streams.new.sum(), {})", r"what it returns first is torch.float32 \[\]: expected torch.float32 \[2\]"),
        ("(1.0, {})", "what it returns first is a float: expected a tensor"),
        ("(streams.new, {'high': streams.new > 0})", r"its metric high is torch.bool \[2\]"),
        ("(streams.new, {'mean': float(streams.new.mean())})", "its metric mean is a float"),
        ("(streams.new, {'pg_loss': streams.new})", "its metric pg_loss has the name of another one"),
    ],
)
@pytest.mark.parametrize("flag", ["loss_type", "custom_tis_function_path"])
def test_what_is_not_of_each_token_is_refused_by_its_flag(flag: str, said: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def run(streams, options, /):\n    return {said}\n")
    mine: dict[str, Any] = {flag: f"{tmp_path}/mine.py:run"}
    streams = make_streams(t(-1.0, -2.0))
    with pytest.raises(UserError, match=f"^--{flag.replace('_', '-')} .*: {message}"):
        objective(streams, Algorithm(**mine))
