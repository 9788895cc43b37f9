"""Group sequence policy optimization: the clipped policy gradient of whole sequences' ratios (arXiv:2507.18071)."""

from __future__ import annotations

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.policy_gradient import policy_gradient
from miles_lite.train.losses.streams import Streams


def gspo(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 5 with s = (new / old of the sequence)^(1 / its length), eq. 7; the paper clips to 3e-4 and 4e-4."""
    return policy_gradient(streams, options)
