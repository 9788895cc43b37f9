"""Rewards as they are: for estimators that make advantages of a rollout's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout


def of_group(rollouts: Sequence[Rollout]) -> np.ndarray:
    """float64 [rollouts]."""
    return np.array([rollout.reward for rollout in rollouts], dtype=np.float64)


def rewards(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """Of each rollout: what comes with its last trained token (PPO, REINFORCE++)."""
    del options
    return [float(reward) for reward in of_group(rollouts)]


def nothing(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """0: the teacher's penalty alone is the advantage (on-policy distillation, arXiv:2306.13649, section 3)."""
    del options
    return [0.0] * len(rollouts)
