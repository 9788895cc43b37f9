"""Running sums and maxima of one training call, reduced over ranks in two collectives.

Invariant: every rank adds the same names in the same order (`Tally` is built from the options, never from the data), so
that a rank without samples reduces the same vector as the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from miles_lite.train.data import Sums


class Tally:
    """Named sums and maxima, both 0 at first. Adding never waits for the device."""

    def __init__(self, *, sums: Sequence[str], maxima: Sequence[str]) -> None:
        self._sums: dict[str, Tensor | float] = dict.fromkeys(sums, 0.0)
        self._maxima: dict[str, list[Tensor | float]] = {name: [0.0] for name in maxima}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value

    def top(self, name: str, value: Tensor | float) -> None:
        self._maxima[name].append(value)

    def reduce(self, mesh: Sums) -> dict[str, float]:
        """All names over all ranks."""
        sums = torch.tensor([float(value) for value in self._sums.values()], dtype=torch.float64)
        maxima = torch.tensor([max(map(float, values)) for values in self._maxima.values()], dtype=torch.float64)
        totals = [*mesh.sum_samples(sums).tolist(), *mesh.most(maxima).tolist()]
        return dict(zip([*self._sums, *self._maxima], totals, strict=True))
