"""`miles-lite show RUN ROLLOUT`: one rollout of a run, and its trajectory with colours, where it was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import ArrowException
from rich.console import Console
from rich.text import Text

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error
from miles_lite.process.piped import printed
from miles_lite.report import rollout_table
from miles_lite.report.record import Record, read_record
from miles_lite.report.rollout_table import TRAJECTORIES, Row, trajectory_path
from miles_lite.report.transcript import APART, LIKELY, VERSIONS, Message, Token, speller, transcript
from miles_lite.report.visible import visible
from miles_lite.traces import atraj

HEAT = ("", "green", "yellow", "dark_orange", "red", "bold red")
Place = Callable[[Token], int | None]
COLOURS: Mapping[str, tuple[str, Place, Mapping[str, str]]] = {
    "probability": (
        "probability at least",
        lambda token: token.likely,
        dict(zip([*map("{:g}".format, LIKELY), "less"], HEAT, strict=True)),
    ),
    "mask": ("mask", lambda token: int(token.trained), {"not trained": "dim", "trained": "green"}),
    "advantage": (
        "advantage",
        lambda token: token.credit,
        {"below -1": "bold red", "below 0": "red", "0": "", "above 0": "green", "1 and more": "bold green"},
    ),
    "version": (
        f"version, modulo {VERSIONS}",
        lambda token: None if token.version is None else token.version % VERSIONS,
        {"0": "", "1": "cyan", "2": "yellow", "3": "magenta"},
    ),
    "gap": (
        "trainer against engine, nats, at least",
        lambda token: token.apart,
        dict(zip(["less", *map("{:g}".format, APART)], HEAT[:-1], strict=True)),
    ),
}
"""By what tokens are coloured: what that is, of which place one is, and of each place its name and its colour."""
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
    console = Console(soft_wrap=True, highlight=False)

    def say() -> None:
        for line in _lines(record, row, options.color_by):
            console.print(line)

    return printed(say)


def _lines(record: Record, row: Row, by: str) -> Iterator[Text]:
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
        yield _said(message, by)
    says, _, places = COLOURS[by]
    yield Text.assemble(f"\n{says}", *((f" {text} ", colour) for text, colour in places.items()))


def _said(message: Message, by: str) -> Text:
    if not message.tokens:
        return Text(message.text)
    _, place_of, places = COLOURS[by]
    colours = list(places.values())
    placed = ((token.text, place_of(token)) for token in message.tokens)
    return Text.assemble(*((text, "" if place is None else colours[place]) for text, place in placed))
