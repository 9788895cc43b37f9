"""`miles-lite show RUN ROLLOUT`: one rollout of a run, and its trajectory with colours, where it was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import ArrowException
from rich.text import Text

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error
from miles_lite.observe.terminal import Printer
from miles_lite.process.piped import printed
from miles_lite.report import rollout_table
from miles_lite.report.parting import damaged
from miles_lite.report.record import Record, read_record
from miles_lite.report.rollout_table import TRAJECTORIES, Row, trajectory_path
from miles_lite.report.transcript import PLACES, VERSIONS, Message, Token, speller, transcript
from miles_lite.report.visible import visible
from miles_lite.traces import atraj

HEAT = ("", "green", "yellow", "dark_orange", "red", "bold red")
COLOURS: Mapping[str, tuple[Callable[[Token], int | None], Sequence[str]]] = {
    "probability": (lambda token: token.likely, HEAT),
    "mask": (lambda token: int(token.trained), ("dim", "green")),
    "advantage": (lambda token: token.credit, ("bold red", "red", "", "green", "bold green")),
    "version": (
        lambda token: None if token.version is None else token.version % VERSIONS,
        ("", "cyan", "yellow", "magenta"),
    ),
    "gap": (lambda token: token.gap, HEAT[:-1]),
}
"""By what tokens are coloured (PLACES): in which place one is, and the colour of each place."""
ROLES = {"system": "magenta", "user": "cyan", "tool": "blue", "assistant": "bold"}


@dataclass(frozen=True, kw_only=True)
class Show:
    """show: which rollout of which run."""

    run: str = option(positional=True, help="run folder")
    rollout: int = option(positional=True, help="its number, as in rollouts/ and in the page")
    color_by: Literal["probability", "mask", "advantage", "version", "gap"] = option(
        "probability", help="what a token's colour says; gap: the trainer's logprob against the engine's"
    )


def main(argv: Sequence[str]) -> int:
    """Print it. Raises UserError for a rollout that is not there."""
    options = take(parser_of(Show, prog="miles-lite show").parse_args(list(argv)), Show)
    folder = Path(options.run).expanduser()
    record = read_record(folder, steps=0)
    with user_error(f"{folder}/{rollout_table.FOLDER} cannot be read", ArrowException, OSError):
        row = rollout_table.find(folder, options.rollout)
    if row is None:
        raise UserError(f"{options.run} has no rollout {options.rollout}; see rollouts/ in it, or miles-lite dash")
    console = Printer()

    def say() -> None:
        for line in _lines(record, row, options.color_by):
            console.print(line)

    return printed(say)


def _lines(record: Record, row: Row, by: str) -> Iterator[Text]:
    for name, value in row.items():
        if value is not None:
            yield Text.assemble((f"{name:16s} ", "dim"), visible(rollout_table.format_value(name, value)))
    path = trajectory_path(record.folder, row["step"], row["rollout"])
    if not path.is_file():
        yield Text(f"\nIts trajectory was not kept (--keep-trajectories); those in {TRAJECTORIES}/ were.", "yellow")
        return
    with damaged(str(path)):
        read = transcript(atraj.read(path), row, why="", spell=speller(record.options), most=None)
    for message in read.messages:
        yield Text.assemble("\n", (message.role, ROLES.get(message.role, "bold")), ("  " + message.caption, "dim"))
        yield _render(message, by)
    says, places = PLACES[by]
    _, colours = COLOURS[by]
    yield Text.assemble(f"\n{says}:", *((f" {name} ", colour) for name, colour in zip(places, colours, strict=True)))


def _render(message: Message, by: str) -> Text:
    if not message.tokens:
        return Text(message.text)
    place_of, colours = COLOURS[by]
    placed = ((token.text, place_of(token)) for token in message.tokens)
    return Text.assemble(*((text, "" if place is None else colours[place]) for text, place in placed))
