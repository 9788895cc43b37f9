"""Advantage estimators by the name that --advantage-estimator gives them.

Invariant: an estimator is a pure function of the rewarded rollouts of one group. One more is a function and a line in
ADVANTAGES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miles_lite.config.choices import AdvantageEstimator
from miles_lite.config.training import Algorithm
from miles_lite.hooks import AdvantageFunction
from miles_lite.sample import Group, Rollout
from miles_lite.train.advantages.grpo import grpo

ADVANTAGES: Mapping[AdvantageEstimator, AdvantageFunction] = {AdvantageEstimator.GRPO: grpo}


def estimate(groups: Sequence[Group], options: Algorithm) -> tuple[list[Rollout], list[float]]:
    """The rollouts of the groups that can be trained, in order, and the advantage of each."""
    rollouts: list[Rollout] = []
    values: list[float] = []
    for group in groups:
        trainable = [rollout for rollout in group.rollouts if rollout.trainable]
        rollouts += trainable
        values += ADVANTAGES[options.advantage_estimator](trainable, options)
    return rollouts, values
