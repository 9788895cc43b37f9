"""Advantage estimators by the name or path that --advantage-estimator gives them.

Invariant: an estimator is a pure function of the rewarded rollouts of one group, and of nothing else of the batch but
for what its entry in `config.algorithms.ADVANTAGES` says. What it makes of tokens is in `tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.hooks import Advantage, AdvantageFunction, load_hook
from miles_lite.sample import Group, Rollout
from miles_lite.train.advantages.grpo import standardised


@cache
def load_advantage(path: str) -> AdvantageFunction:
    """The function at that import path. Raises UserError."""
    return load_hook(path, flag="--advantage-estimator")


def estimate(groups: Sequence[Group], options: Algorithm) -> tuple[list[Rollout], list[Advantage]]:
    """The rollouts of the groups that can be trained, in order, and the advantage of each."""
    estimator = options.estimator
    function = load_advantage(estimator.path)
    rollouts: list[Rollout] = []
    values: list[Advantage] = []
    for group in groups:
        trainable = [rollout for rollout in group.rollouts if rollout.trainable]
        rollouts += trainable
        values += function(trainable, options)
    if estimator.standardized:
        values = [float(value) for value in standardised(np.array(values, dtype=np.float64))]
    return rollouts, values
