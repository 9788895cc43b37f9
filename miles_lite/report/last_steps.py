"""What the end of a run says, as alarms look at it.

Invariant: pure; whatever a record lacks is left out, and nothing raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite

import orjson

from miles_lite.process.json_types import parsed
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import Row

LOOKS, FEW_LOOKS = 12, 5
"""At the engines: those at the end of a run, of which there must be a few."""
SUMMED = ("kv_use", "running", "queued", "preempted")


def of_last_steps(record: Record, steps: int) -> list[Row]:
    last = sorted({row["step"] for row in record.rollouts})[-steps:]
    return [row for row in record.rollouts if row["step"] in last]


def looks_at_engines(record: Record) -> list[dict[str, float]]:
    """The last looks at the engines: of each column the sum over those that said something, and how many did."""
    looks: dict[float, dict[str, float]] = {}
    for row in record.fleet:
        if row["time"] is not None and row["kv_use"] is not None:
            look = looks.setdefault(row["time"], dict.fromkeys(("engines", *SUMMED), 0.0))
            look["engines"] += 1
            for name in SUMMED:
                look[name] += row[name] or 0
    return [look for _, look in sorted(looks.items())][-LOOKS:]


def numbers(said: object) -> dict[str, float]:
    """A column that holds JSON: numbers by name."""
    found = parsed(said, orjson.loads) if isinstance(said, str) else None
    return {name: value for name, value in found.items() if _finite(value)} if isinstance(found, dict) else {}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def commonest(failed: Sequence[Row]) -> tuple[str, str]:
    """Where most broke, and what most of those said."""
    where = Counter(row["where"] for row in failed).most_common(1)[0][0]
    return where, Counter(row["why"] for row in failed if row["where"] == where).most_common(1)[0][0]


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
