"""How the engines of a run stood over time, as lines of a picture.

Invariant: pure; a picture has MOST_POINTS points a line and MOST_LINES lines at most, however long the run and large
its fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from miles_lite.process.json_types import JsonMapping

MOST_POINTS, MOST_LINES = 200, 6
LONG_SECONDS = 7200.0
"""A longer run is told in minutes."""
Cells = dict[int, dict[int, list[float]]]
"""What was said, by engine and moment."""


@dataclass(frozen=True, slots=True)
class FleetLines:
    """Of one column: a line by engine, or by what the least, the middle and the most of many engines is, over `unit`s
    since the first look; what was seen between two points is their mean."""

    unit: str
    lines: Mapping[str, Mapping[int, float]]


def fleet_lines(rows: Sequence[JsonMapping], column: str) -> FleetLines:
    """Of rows of `fleet_rows`. What is null leaves a hole."""
    said = [row for row in rows if None not in (row["time"], row["engine"])]
    began, ended = (pick((row["time"] for row in said), default=0.0) for pick in (min, max))
    unit, seconds = ("minutes", 60) if ended - began > LONG_SECONDS else ("seconds", 1)
    width = max(1, -(-int((ended - began) / seconds + 1) // MOST_POINTS))
    cells: Cells = {}
    for row in said:
        if (value := row[column]) is not None:
            moment = int((row["time"] - began) / seconds) // width * width
            cells.setdefault(row["engine"], {}).setdefault(moment, []).append(float(value))
    means = {
        engine: {moment: fmean(each) for moment, each in sorted(moments.items())}
        for engine, moments in sorted(cells.items())
    }
    if len(means) <= MOST_LINES:
        return FleetLines(unit, {f"engine {engine}": line for engine, line in means.items()})
    return FleetLines(unit, _spread(list(means.values())))


def _spread(lines: Sequence[Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """The least, the middle and the most of many lines, at each moment that one of them has."""
    moments = sorted({moment for line in lines for moment in line})
    every = {moment: [line[moment] for line in lines if moment in line] for moment in moments}
    return {
        name: {moment: pick(each) for moment, each in every.items()}
        for name, pick in (("least", min), ("median", median), ("most", max))
    }
