"""Numbers shared out so that the sums are alike: Karmarkar and Karp's largest differencing method.

N. Karmarkar, R. Karp: "The differencing method of set partitioning" (1982), for several parts as in R. Korf:
"Multi-way number partitioning" (2009).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(order=True)
class _Partial:
    """Parts, the largest sum first; those of largest spread come first."""

    spread: float
    number: int
    parts: list[tuple[float, list[int]]] = field(compare=False)


def karmarkar_karp(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Indices of `costs`, each in one of `parts` lists, some of which may be empty."""
    number = itertools.count()

    def partial(parts: list[tuple[float, list[int]]]) -> _Partial:
        ordered = sorted(parts, key=lambda part: -part[0])
        return _Partial(ordered[-1][0] - ordered[0][0], next(number), ordered)

    heap = [partial([(cost, [index]), *((0.0, []) for _ in range(parts - 1))]) for index, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        one, other = heapq.heappop(heap).parts, heapq.heappop(heap).parts
        joined = [
            (large + small, [*most, *least]) for (large, most), (small, least) in zip(one, reversed(other), strict=True)
        ]
        heapq.heappush(heap, partial(joined))
    return [indices for _, indices in heap[0].parts] if heap else [[] for _ in range(parts)]
