"""Groups of rollouts counted: how many carry no gradient, and how many are solved how often.

Invariant: of each step counts alone are kept. A group is what was judged of it: what failed is in no count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
from pyarrow import compute

MOST_ROWS = 12
"""Of a table: so many parts of a long run."""


@dataclass
class Groups:
    """`solved`: how many groups, by how many rollouts were judged and how many of those earned 1. Of the groups, those
    whose rewards are `all_zero`, `all_one`, or all equal (`flat`, these two included)."""

    solved: Counter[tuple[int, int]] = field(default_factory=Counter)
    all_zero: int = 0
    all_one: int = 0
    flat: int = 0

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Of the rows of one step."""
        judged = table.filter(compute.and_(compute.is_null(table["where"]), compute.is_valid(table["group"])))
        if not judged.num_rows:
            return cls()
        _, group = np.unique(judged["group"].to_pylist(), return_inverse=True)  # Arrow's own way imports pandas
        rewards = np.array(judged["reward"].to_pylist(), dtype=np.float64)
        given = ~np.isnan(rewards)
        sizes, none = np.bincount(group), np.bincount(group, weights=~given)
        ones = np.bincount(group, weights=rewards == 1.0)
        low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
        np.minimum.at(low, group[given], rewards[given])
        np.maximum.at(high, group[given], rewards[given])
        flat = (none == sizes) | ((none == 0) & (low == high))
        return cls(
            Counter(zip(sizes.tolist(), ones.astype(int).tolist(), strict=True)),
            int(np.sum(flat & (low == 0))),
            int(np.sum(flat & (low == 1))),
            int(np.sum(flat)),
        )

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """Of several steps."""
        whole = cls()
        for part in parts:
            whole.solved.update(part.solved)
            whole.all_zero += part.all_zero
            whole.all_one += part.all_one
            whole.flat += part.flat
        return whole

    def pass_rate(self, k: int) -> float | None:
        """pass@k over the groups of k and more (`pass_at`); None where there are none."""
        enough = {of: count for of, count in self.solved.items() if of[0] >= k}
        groups = sum(enough.values())
        return sum(count * pass_at(k, *of) for of, count in enough.items()) / groups if groups else None


def pass_at(k: int, rollouts: int, correct: int) -> float:
    """The unbiased estimator of one group, 1 - C(n-c, k) / C(n, k) (arXiv:2107.03374)."""
    return 1.0 - math.comb(rollouts - correct, k) / math.comb(rollouts, k)


def group_table(steps: Mapping[int, Groups]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows: the groups of equal parts of a run, and of the whole."""
    parts = _parts(sorted(steps))
    counted = [(_name(part), Groups.together(steps[step] for step in part)) for part in parts]
    if len(counted) > 1:
        counted.append(("all", Groups.together(steps.values())))
    sizes = [size for _, groups in counted for size, _ in groups.solved]
    powers = [2**power for power in range(max(sizes, default=0).bit_length())]
    head = ["steps", "groups", "all 0", "all 1", "equal otherwise", "no gradient", *(f"pass@{k}" for k in powers)]
    return head, [_row(name, groups, powers) for name, groups in counted if groups.solved]


def _row(name: str, groups: Groups, powers: Sequence[int]) -> list[str]:
    every = groups.solved.total()
    others = groups.flat - groups.all_zero - groups.all_one
    rates = [groups.pass_rate(k) for k in powers]
    shown = [str(count) for count in (every, groups.all_zero, groups.all_one, others)]
    return [name, *shown, f"{groups.flat / every:.0%}", *("-" if rate is None else f"{rate:.3f}" for rate in rates)]


def _parts(steps: Sequence[int]) -> list[Sequence[int]]:
    size = max(1, -(-len(steps) // MOST_ROWS))
    return [steps[at : at + size] for at in range(0, len(steps), size)]


def _name(steps: Sequence[int]) -> str:
    return f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
