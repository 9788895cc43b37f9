"""Imitation: the negative log-likelihood of the tokens, whatever their advantages."""

from __future__ import annotations

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.streams import Streams


def cross_entropy(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """-log p(token), which has no ratio to another policy."""
    del options
    return -streams.new, {}
