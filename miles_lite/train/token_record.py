"""Of a training step, what it made of the tokens of those rollouts that somebody keeps.

Invariant: it looks and changes nothing; where no rollout of the batch is kept it costs nothing. What it holds of other
rollouts' tokens is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from miles_lite.sample import Sample
from miles_lite.traces.token_values import TokenValues
from miles_lite.train.batching import Batch
from miles_lite.train.packing import Packed


@dataclass(frozen=True, slots=True)
class _Seen:
    """The scored tokens of one sample: where they stand in it, their shares in the loss, and their values, on the
    device that computed them."""

    index: int
    places: np.ndarray
    weights: Tensor
    logprobs: Tensor
    advantages: Tensor


class TokenRecord:
    """Of one batch."""

    def __init__(self, batch: Batch[Sample]) -> None:
        self._batch, self._seen = batch, list[_Seen]()

    def record(self, packed: Packed, *, logprobs: Tensor, advantages: Tensor) -> None:
        """A pass, and float32 [N] of its tokens: the trainer's logprobs before the first update, or where nobody asked
        for them before the pass's own, and what the loss takes as advantages. What is seen is copied."""
        if not self._batch.kept:
            return
        end = 0
        for index, places in zip(packed.members, packed.places, strict=True):
            mine = slice(end, end := end + len(places))
            if int(self._batch.rollouts[index]) in self._batch.kept:
                said = (each[mine].detach().clone() for each in (packed.weights, logprobs, advantages))
                self._seen.append(_Seen(index, places, *said))

    def values(self) -> list[TokenValues]:
        """Of what was seen: by sample and turn, those of its tokens that were trained."""
        return [told for seen in self._seen for told in self._values_of(seen)]

    def _values_of(self, seen: _Seen) -> Iterator[TokenValues]:
        sample, places = self._batch.samples[seen.index], seen.places
        trained = seen.weights.cpu().numpy() > 0
        logprobs, advantages = (each.float().cpu().numpy() for each in (seen.logprobs, seen.advantages))
        for number, start, end in sample.metadata.get("turn_spans", ()):  # none where no session knows its turns
            mine = trained & (sample.turns[places] == number) & (start <= places) & (places < end)
            yield TokenValues(
                rollout=int(self._batch.rollouts[seen.index]),
                turn=number,
                places=(places[mine] - start).astype(np.int32),
                ids=sample.tokens[places[mine]],
                logprobs=logprobs[mine],
                advantages=advantages[mine],
            )
