"""Losses by the name that --loss-type gives them: pure functions of packed token streams.

Invariant: a loss reduces, masks and weighs nothing; the learner does, the same for each. One more is a function and a
line in LOSSES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from miles_lite.config.choices import LossType
from miles_lite.config.training import Algorithm
from miles_lite.train.losses.cross_entropy import cross_entropy
from miles_lite.train.losses.policy_gradient import policy_gradient
from miles_lite.train.losses.streams import Streams

Loss = Callable[[Streams, Algorithm], tuple[Tensor, dict[str, Tensor]]]
"""Per-token loss and metrics, each float32 [N]; the metrics' names depend on the options alone."""

LOSSES: Mapping[LossType, Loss] = {LossType.POLICY: policy_gradient, LossType.SFT: cross_entropy}
