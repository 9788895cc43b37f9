"""Rewards of one prompt group to advantages.

Invariant: pure, over rollouts (never over the samples a rollout fans out to); a group without spread gets zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-6


def grpo(rewards: Sequence[float], *, normalize: bool = True, divide_by_std: bool = True) -> np.ndarray:
    """Group-relative advantages, float32 [len(rewards)].

    The reward minus the group's mean, over its sample standard deviation (GRPO, DeepSeekMath, arXiv:2402.03300, section
    4.1). `divide_by_std=False` only subtracts the mean (Dr. GRPO, arXiv:2503.20783); `normalize=False` returns the
    rewards as they are.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not normalize or len(values) == 0:
        return values.astype(np.float32)
    centred: np.ndarray = values - values.mean()
    if divide_by_std:
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        centred = centred / (spread + EPSILON)
    return centred.astype(np.float32)
