"""Learning rates at the points that define them."""

from __future__ import annotations

from typing import Literal

import pytest

from miles_lite.config.training import Optimizer
from miles_lite.train.learning_rate import learning_rate


@pytest.mark.parametrize(
    ("style", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.6, 0.2]),
        ("cosine", [0.5, 1.0, 1.0, 0.6, 0.2]),
    ],
)
def test_warm_up_then_decay(style: Literal["constant", "linear", "cosine"], rates: list[float]) -> None:
    options = Optimizer(lr=1.0, min_lr=0.2, lr_warmup_iters=2, lr_decay_style=style)
    assert [learning_rate(update, options, total=10) for update in (0, 1, 2, 6, 12)] == pytest.approx(rates)
