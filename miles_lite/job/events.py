"""Writes a run's `events.jsonl`, as `report.event_rows` has it.

Invariant: no event stops a run: what cannot be written is lost, which is said once. What happens before it is known
whether the run goes on with what is in its folder waits until then, or until the run ends.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from miles_lite.errors import plain
from miles_lite.report import event_rows
from miles_lite.report.event_rows import Kind
from miles_lite.report.json_lines import LossyLines


class Events:
    """Of all attempts of one run. A context manager that notes how the run ends, if one has begun."""

    def __init__(self, run_dir: Path) -> None:
        self._file = LossyLines(run_dir / event_rows.FILE)
        self._waiting: list[dict[str, object]] = []
        self._known = False

    def record(
        self,
        kind: Kind,
        said: str,
        *,
        step: int | None = None,
        what: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """It happened now."""
        self._waiting.append(event_rows.row(kind, said, at=time.time(), step=step, what=what, seconds=seconds))
        if self._known:
            self.write()

    def write(self) -> None:
        """What waits, and from now on everything at once."""
        waiting, self._waiting, self._known = self._waiting, [], True
        self._file.write(waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._known or self._waiting:
            self.record(Kind.END, _outcome(error))
            self.write()
        self._known = False
        self._file.close()


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "well"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(plain(error)).__name__}: {plain(error)}"
