"""A launcher of the field, flag by flag: what is accepted, mapped, ignored, refused, or not known.

Invariant: it says of a flag what the parser of `miles-lite train` does with it (flags.py, field_flags.py); a value that
stands for a shell variable counts as any valid one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

from miles_lite.config.field_flags import Fate, answer_to
from miles_lite.config.flags import Parser, every_option, parser_of
from miles_lite.config.option import Option
from miles_lite.config.options import Config
from miles_lite.errors import UserError

Flag: TypeAlias = tuple[str, Sequence[str]]
"""A flag with its dashes, and its values."""

_PLACEHOLDER = re.compile(r"[$()`{}]|^x$|^8$|^fi$|^$|(^|/)path/x|(^|/)x(/|$)|^8 |,x$")


@dataclass
class Translation:
    """Names of flags, with their dashes; of the mapped and the refused why; `argv`, our command line."""

    accepted: list[str] = field(default_factory=list)
    mapped: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)

    def add(self, more: Translation) -> None:
        """What became of other flags of the same launcher."""
        for names, others in ((self.accepted, more.accepted), (self.unknown, more.unknown), (self.argv, more.argv)):
            names += others
        for whys, more_whys in ((self.mapped, more.mapped), (self.ignored, more.ignored), (self.refused, more.refused)):
            whys |= more_whys

    def as_json(self) -> dict[str, object]:
        return {
            "accepted": sorted(set(self.accepted)),
            "mapped": self.mapped,
            "ignored": sorted(self.ignored),
            "refused": self.refused,
            "unknown": sorted(set(self.unknown)),
        }


def is_placeholder(value: str) -> bool:
    """Whether it stands for what a shell would put there: `$NAME`, `x`, `8`, `/path/x`."""
    return _PLACEHOLDER.search(value) is not None


def translate(flags: Iterable[Flag]) -> Translation:
    """What becomes of each flag of a launcher, in its order."""
    said = Translation()
    for flag, values in flags:
        _add(said, flag, list(values))
    return said


def _add(said: Translation, flag: str, values: list[str]) -> None:
    name = flag.removeprefix("--")
    action = _parser()._option_string_actions.get(flag)
    answer = answer_to(name, values)
    if answer is not None and (action is None or answer.values):
        if answer.fate is Fate.MAPPED:
            ours = answer.ours(values) if answer.ours else []
            said.mapped[flag] = f"{' '.join(ours) or 'left out'}: {answer.why}"
            said.argv += ours
        else:
            (said.ignored if answer.fate is Fate.IGNORED else said.refused)[flag] = answer.why
    elif action is not None:
        flaw = None if any(map(is_placeholder, values)) else _flaw(action, flag, values)
        if flaw is not None:
            said.refused[flag] = flaw
            return
        said.accepted.append(flag)
        own = f"--{action.dest.replace('_', '-')}"
        if own != flag and not flag.startswith("--no-"):
            said.mapped[flag] = f"{own}: another name of it"
            said.accepted.pop()
        said.argv += [flag, *values]
    elif name.startswith("sglang-") and not name.startswith("sglang-router-"):
        said.accepted.append(flag)
        said.argv += [flag, *values]
    else:
        said.unknown.append(flag)


def _flaw(action: argparse.Action, flag: str, values: list[str]) -> str | None:
    """What is wrong with the values of one of our flags; None: nothing."""
    if action.nargs == 0 or not values:  # a value that is not there was an expression of a shell's
        return None
    single = action.nargs in (None, "?")
    try:
        read = _parser()._get_values(action, values[:1] if single else values)
        _options()[action.dest].settled(flag, tuple(read) if isinstance(read, list) else read)
    except argparse.ArgumentError as error:
        return error.message
    except UserError as error:
        return str(error)
    return None


@cache
def _parser() -> Parser:
    return parser_of(Config, prog="miles-lite train")


@cache
def _options() -> dict[str, Option]:
    return {each.field.name: each.option for each in every_option(Config)}
