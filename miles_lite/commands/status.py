"""`miles-lite status RUN`: where a run stands, from another shell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.job.claim import in_use
from miles_lite.observe.terminal import Printer, event_line, latest_line, seconds
from miles_lite.process.piped import printed
from miles_lite.report.alarms import WINDOW, alarms
from miles_lite.report.event_rows import Kind
from miles_lite.report.record import Record, read_record
from miles_lite.report.visible import visible

EVENTS = 5


@dataclass(frozen=True, kw_only=True)
class Status:
    """status: of which run."""

    run: str = option(positional=True, help="run folder")


def main(argv: Sequence[str]) -> int:
    """Print it. Raises UserError."""
    options = take(parser_of(Status, prog="miles-lite status").parse_args(list(argv)), Status)
    folder = Path(options.run).expanduser()
    record = read_record(folder, steps=WINDOW)
    console = Printer()

    def say() -> None:
        for line, style in _lines(record, running=in_use(folder)):
            console.print(Text(visible(line), style))

    return printed(say)


def _lines(record: Record, *, running: bool) -> Iterator[tuple[str, str]]:
    """What is said, and in which style."""
    last = record.events[-1] if record.events else {}
    ended = f"ended: {last['said']}" if last.get("kind") == Kind.END else "ended without a word: it was killed"
    ago = f", {seconds(time.time() - last['time'])} ago" if last.get("time") else ""
    yield f"{record.folder}: {'running' if running else f'{ended}{ago}'}", "bold"
    if line := latest_line(record):
        yield line, ""
    found = alarms(record)
    for alarm in found:
        yield f"alarm: {alarm.title}: {alarm.evidence}. {alarm.advice}", "red"
    if not found:
        yield "no alarm", "green"
    for event in record.events[-EVENTS:]:
        yield event_line(event), "dim"
