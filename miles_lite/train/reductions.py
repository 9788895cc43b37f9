"""Whose mean the loss of a step is: what the loss of each sample's tokens is divided by.

Invariant: pure; every rank computes the same of the same sample. What is counted is trained tokens of the whole step,
over all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from miles_lite.config.choices import Reduction


@dataclass(frozen=True, slots=True)
class StepSize:
    """What an optimizer step covers, over all ranks: counts of what trains something."""

    rollouts: int
    samples: int
    prompts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Trained tokens of each of some samples, of its whole rollout, of all its prompt's rollouts in the step: float64
    [samples]. `length`: the constant one."""

    sample: np.ndarray
    rollout: np.ndarray
    prompt: np.ndarray
    length: float


REDUCTIONS: Mapping[Reduction, Callable[[Counts, StepSize], np.ndarray]] = {
    Reduction.TOKEN: lambda counts, step: np.full(len(counts.sample), float(max(step.tokens, 1))),
    Reduction.SAMPLE: lambda counts, step: np.maximum(counts.sample, 1.0) * step.samples,
    Reduction.ROLLOUT: lambda counts, step: np.maximum(counts.rollout, 1.0) * step.rollouts,
    Reduction.PROMPT: lambda counts, step: np.maximum(counts.prompt, 1.0) * step.prompts,
    Reduction.CONSTANT: lambda counts, step: np.full(len(counts.sample), counts.length * max(step.rollouts, 1)),
}
"""Denominators, float64 [samples]: of GRPO's mean over rollouts of their mean tokens (arXiv:2402.03300, eq. 3), DAPO's
mean over tokens (arXiv:2503.14476, eq. 8), Dr. GRPO's constant length (arXiv:2503.20783, section 3.2), ..."""
