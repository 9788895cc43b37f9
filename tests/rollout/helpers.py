"""What tests of rollouts share: samples, and rollouts whose samples lie in this process."""

from __future__ import annotations

from typing import Any

import numpy as np

from miles_lite.sample import NOT_SAMPLED, Held, Rollout, Sample


def make_sample(length: int, trained: int) -> Sample:
    """`length` tokens, of which the last `trained` were sampled."""
    mask = np.zeros(length, dtype=np.uint8)
    mask[length - trained :] = 1
    return Sample(
        tokens=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        temperatures=np.ones(length, dtype=np.float32),
        weight_versions=np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32),
    )


def make_rollout(index: int, group_index: int, *samples: Sample, **known: Any) -> Rollout:
    """The record of a rollout with these samples."""
    return Rollout(index, group_index, [sample.record() for sample in samples], stored=Held(samples), **known)
