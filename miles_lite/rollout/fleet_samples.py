"""Writes a run's `fleet.jsonl`, as `report.fleet_rows` has it.

Invariant: a look at the engines is one write; the longer a run, the rarer they are written, so that its file has some
BLOCKs at most. What happens before the first step is begun is not of this run's record.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from miles_lite.engine.reported_load import Load
from miles_lite.report import fleet_rows
from miles_lite.report import metric_names as names
from miles_lite.report.json_lines import LossyLines

BLOCK = 8 << 20
"""Bytes, after each of which looks are written half as often."""
_SAID = [field.name for field in dataclasses.fields(Load)]


class FleetSamples:
    """Of one run; `step` is that which was begun last."""

    def __init__(self, run_dir: Path) -> None:
        self._file, self._looks = LossyLines(run_dir / fleet_rows.FILE), 0
        self._seen, self._busy = 0, 0
        self.step: int | None = None

    def record(self, loads: Mapping[int, Load | None]) -> None:
        """What each engine bears now."""
        if self.step is None:
            return
        self._looks += 1
        said = [load for load in loads.values() if load is not None]
        self._seen, self._busy = self._seen + len(said), self._busy + sum(load.running > 0 for load in said)
        if self._looks % (1 << self._file.size // BLOCK) == 0:
            at = {"time": round(time.time(), 3), "step": self.step}
            self._file.write({**at, "engine": engine, **_columns(load)} for engine, load in loads.items())

    def metrics(self) -> dict[str, float]:
        """The share of what engines said since this was asked last in which requests ran; nothing where none said
        anything."""
        seen, busy, self._seen, self._busy = self._seen, self._busy, 0, 0
        return {names.ENGINES_BUSY: busy / seen} if seen else {}


def _columns(load: Load | None) -> Mapping[str, object]:
    return dict.fromkeys(_SAID) if load is None else dataclasses.asdict(load)
