"""`miles-lite show RUN ROLLOUT`: one rollout of a run, and its trajectory with colours, where it was kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError
from miles_lite.process.piped import printed
from miles_lite.report.record import Record, read_record
from miles_lite.report.rollout_table import TRAJECTORIES, Row, trajectory_path
from miles_lite.report.transcript import LIKELY, Message, speller, transcript
from miles_lite.report.visible import visible
from miles_lite.traces import atraj

COLOURS = ("", "green", "yellow", "dark_orange", "red", "bold red")
"""Of a token, by its place in LIKELY."""
ROLES = {"system": "magenta", "user": "cyan", "tool": "blue", "assistant": "bold"}


@dataclass(frozen=True, kw_only=True)
class Show:
    """show: which rollout of which run."""

    run: str = option(positional=True, help="run folder")
    rollout: int = option(positional=True, help="its number, as in rollouts/ and in the page")


def main(argv: Sequence[str]) -> int:
    """Print it. Raises UserError for a rollout that is not there."""
    options = take(parser_of(Show, prog="miles-lite show").parse_args(list(argv)), Show)
    record = read_record(Path(options.run).expanduser())
    row = next((row for row in reversed(record.rollouts) if row["rollout"] == options.rollout), None)
    if row is None:
        numbers = [row["rollout"] for row in record.rollouts]
        there = f"those are between {min(numbers)} and {max(numbers)}" if numbers else "there are none"
        raise UserError(f"{options.run} has no rollout {options.rollout} that trains; {there}")
    console = Console(soft_wrap=True, highlight=False)

    def say() -> None:
        for line in _lines(record, row):
            console.print(line)

    return printed(say)


def _lines(record: Record, row: Row) -> Iterator[Text]:
    for name, value in row.items():
        if value is not None:
            yield Text.assemble((f"{name:16s} ", "dim"), visible(value))
    path = trajectory_path(record.folder, row["step"], row["rollout"])
    if not path.is_file():
        yield Text(f"\nIts trajectory was not kept (--keep-trajectories); those in {TRAJECTORIES}/ were.", "yellow")
        return
    read = transcript(atraj.read(path), row, why="", spell=speller(record.options), most=None)
    for message in read.messages:
        yield Text.assemble("\n", (message.role, ROLES.get(message.role, "bold")), ("  " + message.says, "dim"))
        yield _said(message)
    least = [f"{share:g}" for share in LIKELY]
    key = [(f" {text} ", colour) for text, colour in zip([*least, "less"], COLOURS, strict=True)]
    yield Text.assemble("\nprobability at least", *key)


def _said(message: Message) -> Text:
    if not message.tokens:
        return Text(message.text)
    return Text.assemble(*((token.text, COLOURS[token.likely]) for token in message.tokens))
