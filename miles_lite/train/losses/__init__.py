"""Losses by the name that --loss-type gives them: pure functions of packed token streams.

Invariant: a loss reduces, masks and weighs nothing; the learner does, the same for each. One more is a function and a
line in LOSSES.
"""

from __future__ import annotations

from collections.abc import Mapping

from miles_lite.config.choices import LossType
from miles_lite.hooks import LossFunction
from miles_lite.train.losses.cross_entropy import cross_entropy
from miles_lite.train.losses.policy_gradient import policy_gradient

LOSSES: Mapping[LossType, LossFunction] = {LossType.POLICY: policy_gradient, LossType.SFT: cross_entropy}
