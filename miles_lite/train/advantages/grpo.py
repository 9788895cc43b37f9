"""Group relative advantages: GRPO (arXiv:2402.03300, section 4.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group

SMALL = 1e-6
"""Added to a standard deviation."""


def grpo(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """(reward - group mean) / (group std + 1e-6) with the sample standard deviation over the group's *rollouts*.

    Without the division under --disable-grpo-std-normalization (Dr. GRPO, arXiv:2503.20783); the reward itself under
    --disable-rewards-normalization.
    """
    rewards = of_group(rollouts)
    if options.disable_rewards_normalization or not len(rewards):
        return [float(reward) for reward in rewards]
    scaled = standardised(rewards, divide=not options.disable_grpo_std_normalization)
    return [float(value) for value in scaled]


def standardised(values: np.ndarray, *, divide: bool = True) -> np.ndarray:
    """float64 [n] less their mean, by their sample standard deviation + 1e-6; zeros where all are equal."""
    equal = bool(np.all(values == values[:1]))
    spread = 0.0 if equal else values.std(ddof=1)
    centred = np.zeros_like(values) if equal else values - values.mean()
    return np.asarray(centred / (spread + SMALL if divide else 1.0))
