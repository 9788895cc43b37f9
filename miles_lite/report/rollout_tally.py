"""What became of all rollouts of a run, counted.

Invariant: the tables of steps are counted one after the other, and what is kept of them does not grow with their rows,
but for some numbers a step.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import compute

from miles_lite.report.group_tally import Groups
from miles_lite.report.rollout_table import TRAINED, Row

COLUMNS = (
    *("step", "rollout", "group", "prompt_row", "outcome", "status", "where", "why", "reward", "trained_tokens"),
    "min_version",
)
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
    """`spread`: by step, mean and standard deviation of the rewards that were given; `groups`: by step; `ages`: trained
    rollouts by how many weight versions old their oldest token was."""

    rollouts: int = 0
    trained_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: dict[str, Broken] = field(default_factory=dict)
    spread: dict[int, tuple[float, float]] = field(default_factory=dict)
    groups: dict[int, Groups] = field(default_factory=dict)
    ages: Counter[int] = field(default_factory=Counter)

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
        if table.num_rows:
            self.groups[table["step"][0].as_py()] = Groups.of(table)
        trained = table.filter(compute.match_substring_regex(table["outcome"], f"^{TRAINED}$"))
        for each in compute.value_counts(compute.subtract(trained["step"], trained["min_version"])).to_pylist():
            if each["values"] is not None:
                self.ages[each["values"]] += each["counts"]
        if table["where"].null_count == table.num_rows:
            return
        for row in table.filter(compute.is_valid(table["where"])).to_pylist():
            broken = self.broken.setdefault(row["where"], Broken())
            broken.texts[row["why"]] += 1
            broken.last.append(row)
