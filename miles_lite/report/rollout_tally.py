"""What became of all rollouts of a run, counted.

Invariant: the tables of steps are counted one after the other, and what is kept of them does not grow with their rows,
but for a mean and a deviation a step.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import compute

from miles_lite.report.rollout_table import Row

COLUMNS = ("step", "rollout", "prompt_row", "outcome", "status", "where", "why", "reward", "trained_tokens")
"""Of `rollout_table`, those that are looked at."""
MOST_FAILURES = 50
"""Failed rollouts that are kept of each boundary: the last."""


@dataclass(frozen=True)
class Broken:
    """What broke at one boundary: how many said what, and the last rows."""

    texts: Counter[str] = field(default_factory=Counter)
    last: deque[Row] = field(default_factory=lambda: deque(maxlen=MOST_FAILURES))

    @property
    def count(self) -> int:
        return self.texts.total()


@dataclass
class Tally:
    """`spread`: by step, mean and standard deviation of the rewards that were given."""

    rollouts: int = 0
    trained_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, Broken] = field(default_factory=dict)
    spread: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def boundaries(self) -> list[tuple[str, Broken]]:
        """Where anything broke, first where most did."""
        return sorted(self.broken.items(), key=lambda one: (-one[1].count, one[0]))

    @property
    def failed(self) -> int:
        return sum(broken.count for broken in self.broken.values())

    def add(self, table: pa.Table) -> None:
        """Of COLUMNS, the rows of one step."""
        self.rollouts += table.num_rows
        self.trained_tokens += compute.sum(table["trained_tokens"]).as_py() or 0
        for each in compute.value_counts(table["outcome"]).to_pylist():
            self.outcomes[each["values"]] += each["counts"]
        mean, deviation = (of(table["reward"]).as_py() for of in (compute.mean, compute.stddev))
        if mean is not None:
            self.spread[table["step"][0].as_py()] = (mean, deviation)
        if table["where"].null_count == table.num_rows:
            return
        for row in table.filter(compute.is_valid(table["where"])).to_pylist():
            broken = self.broken.setdefault(row["where"], Broken())
            broken.texts[row["why"]] += 1
            broken.last.append(row)
