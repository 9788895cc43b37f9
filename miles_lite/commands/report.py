"""`miles-lite report RUN [RUN ...]`: one page that tells what a run did, alarms first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error, writing
from miles_lite.process.drafted import drafted
from miles_lite.report.page import render
from miles_lite.report.record import read_record


@dataclass(frozen=True, kw_only=True)
class Report:
    """report: of which runs, and where to."""

    runs: tuple[str, ...] = option(positional=True, nargs="+", help="run folders; of several, what differs comes first")
    out: str | None = option(None, help="the HTML file (default: report.html in the first run's folder)", path=True)


def main(argv: Sequence[str]) -> int:
    """Write the page. Raises UserError."""
    options = take(parser_of(Report, prog="miles-lite report").parse_args(list(argv)), Report)
    folders = [Path(run).expanduser() for run in options.runs]
    page = render([read_record(folder) for folder in folders])
    path = Path(options.out) if options.out is not None else folders[0] / "report.html"
    with user_error(f"{path} cannot be written", OSError), writing("the report", path):
        if path.exists() and not path.is_file():
            raise UserError(f"--out {path}: is no file that could be replaced")
        with drafted(path) as draft:
            draft.write_text(page, encoding="utf-8", errors="replace")
    print(path)
    return 0
