"""Clipping is by the norm of all gradients as one vector."""

from __future__ import annotations

import pytest
import torch

from miles_lite.train.norms import clip, global_norm


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_gradients_are_scaled_to_the_bound_and_never_up(max_norm: float) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(2, dtype=torch.float64)]
    before = [each.clone() for each in gradients]
    norm = float(torch.cat([each.flatten().double() for each in gradients]).norm())
    assert global_norm(gradients) == pytest.approx(norm, rel=1e-6)
    assert clip(gradients, max_norm=max_norm) == pytest.approx(norm, rel=1e-6)
    scale = min(1.0, max_norm / norm) if max_norm else 1.0
    for now, once in zip(gradients, before, strict=True):
        torch.testing.assert_close(now, once * scale)


def test_of_no_gradients() -> None:
    assert clip([], max_norm=1.0) == 0.0
