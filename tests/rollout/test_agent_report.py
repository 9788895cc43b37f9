"""What an estimator cannot read fails its rollout, not the batch."""

from __future__ import annotations

from typing import Any

import pytest

from miles_lite.errors import RolloutError, Where
from miles_lite.rollout.agent_report import check_rewards

GDPO = "gdpo"
TURNS = "per_turn"


@pytest.mark.parametrize(
    ("estimator", "metadata"),
    [
        (GDPO, {"rewards": {"a": "x"}}),
        (GDPO, {"rewards": {"a": float("nan")}}),
        (GDPO, {"rewards": "good"}),
        (TURNS, {"turn_rewards": [1.0, float("inf")]}),
        (TURNS, {"turn_rewards": [[1.0]]}),
    ],
)
def test_rewards_that_are_no_numbers_break_their_rollout(estimator: str, metadata: dict[str, Any]) -> None:
    with pytest.raises(RolloutError, match="finite numbers") as told:
        check_rewards(metadata, estimator)
    assert told.value.where == Where.REWARD


@pytest.mark.parametrize(
    ("estimator", "metadata"),
    [
        (GDPO, {"rewards": {"a": 1, "b": None}}),
        (GDPO, {}),
        (TURNS, {"turn_rewards": [0.5, None, True]}),
        ("grpo", {"rewards": {"a": "mine"}}),
        ("mine.py:estimate", {"rewards": "mine"}),
    ],
)
def test_others_may_return_what_they_like(estimator: str, metadata: dict[str, Any]) -> None:
    check_rewards(metadata, estimator)
