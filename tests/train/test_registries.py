"""Registries beside the flags that choose from them, and beside the page that names what they hold."""

from __future__ import annotations

from pathlib import Path

from miles_lite.config.choices import AdvantageEstimator, LossType
from miles_lite.config.training import Algorithm
from miles_lite.rollout.filters import FILTERS
from miles_lite.rollout.rewards import REWARDS
from miles_lite.train.advantages import ADVANTAGES
from miles_lite.train.losses import LOSSES
from miles_lite.train.losses.objective import metric_names
from tests.metric_names import undocumented

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_flags_offer_what_the_registries_hold() -> None:
    assert set(LossType) == set(LOSSES)
    assert set(AdvantageEstimator) == set(ADVANTAGES)


def test_the_page_names_every_reward_and_filter() -> None:
    assert {name for name in [*REWARDS, *FILTERS, *LOSSES] if f"`{name}`" not in PAGE} == set()


def test_every_loss_says_the_same_of_no_tokens_as_of_some_and_its_metrics_are_documented() -> None:
    for name in LossType:
        names = metric_names(Algorithm(loss_type=name, use_tis=name == LossType.POLICY), reference=True)
        assert undocumented(f"train/{each}" for each in names) == set()
