"""`miles-lite tail RUN`: a run's steps and events as they come, from another shell, until it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from rich.text import Text

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import user_error
from miles_lite.job.claim import in_use
from miles_lite.observe.terminal import Printer, event_line, latest_line
from miles_lite.process.piped import printed
from miles_lite.report import event_rows
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.report.history import Curves
from miles_lite.report.json_lines import Growing
from miles_lite.report.record import METRICS, read_record
from miles_lite.report.visible import visible

LOOK_SECONDS = 0.5
QUIET = (Kind.WEIGHTS, Kind.FAILURES, Kind.EVALUATION)
"""What a step's line says already, or happens in each."""
STYLES: Mapping[str, str] = {Kind.ALARM: "red", Kind.RESTART: "red", Kind.CALM: "green", Kind.END: "bold"}


@dataclass(frozen=True, kw_only=True)
class Tail:
    """tail: of which run."""

    run: str = option(positional=True, help="run folder")
    lines: int = option(10, help="how many of those that are there come first", least=0)
    follow: bool = option(True, help="wait for more until the run ends")


class Lines:
    """What a run says, one line a step and one an event, with its style."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError for what is no run folder."""
        self._record = read_record(folder, steps=0)
        self._curves = Curves()
        self._metrics, self._events = Growing(folder / METRICS), Growing(folder / event_rows.FILE)

    def new(self) -> list[tuple[str, str]]:
        """Those that came since the last time, in their order."""
        return [(line, style) for _, line, style in sorted([*self._steps(), *self._happened()], key=itemgetter(0))]

    def _steps(self) -> Iterator[tuple[float, str, str]]:
        for row in self._metrics.rows():
            self._curves.add_row(row)
            if names.STEP_TIME in row:
                yield row.get("time") or 0.0, latest_line(self._record.of(self._curves)), ""

    def _happened(self) -> Iterator[tuple[float, str, str]]:
        for row in map(event_rows.whole, self._events.rows()):
            if row["kind"] not in QUIET:
                yield row["time"], event_line(row), STYLES.get(row["kind"], "dim")


def main(argv: Sequence[str]) -> int:
    """Print until the run ends. Raises UserError."""
    options = take(parser_of(Tail, prog="miles-lite tail").parse_args(list(argv)), Tail)
    folder = Path(options.run).expanduser()
    lines, console = Lines(folder), Printer()

    def say() -> None:
        with user_error(f"{folder} is there no longer", FileNotFoundError):
            follow()

    def follow() -> None:
        running = options.follow and in_use(folder)
        _print(console, lines.new()[-options.lines :] if options.lines else [])
        while running:
            time.sleep(LOOK_SECONDS)
            running = in_use(folder)
            _print(console, lines.new())

    return printed(say)


def _print(console: Printer, lines: Sequence[tuple[str, str]]) -> None:
    for line, style in lines:
        console.print(Text(visible(line), style))
