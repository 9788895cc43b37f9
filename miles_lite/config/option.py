"""One option: a field of a frozen dataclass that is also a command-line flag, with what its value may be.

Invariant: what is to be known of an option (help, choices, bounds, whether it is a path) stands at its field.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from miles_lite.config.folders import absolute
from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError

KEY = "option"
OTHERS = "others by package.module:name or file.py:name"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says of its flag.

    nargs, choices, metavar, const   argparse's
    named     names that the value may be; any other is an import path of the user's
    least, above, most, below        bounds of a number
    empty     whether "" is a value
    positional  it has no flag: its place says what it is
    path      the value becomes absolute, from where the command was started, because actors may run elsewhere; or a
              function that makes it so of those parts of the value that are paths
    check     raises UserError for a value that is none
    spelled   a switch that takes the words true and false, and none
    aka       other launchers' names of the flag
    read      what their values are called here
    needs     options without which it is refused; with_: without which it changes nothing (`partners` says how), or a
              function of the option's name that says so
    """

    help: str
    nargs: str | None = None
    choices: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    metavar: str | None = None
    const: str | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    empty: bool = False
    positional: bool = False
    path: bool | Callable[[Any], object] = False
    spelled: bool = False
    check: Callable[[Any], object] | None = None
    aka: tuple[str, ...] = ()
    read: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: str | None = None
    with_: str | Callable[[str], str] | None = None

    def bounds(self) -> list[tuple[Callable[[float, float], bool], float, str]]:
        """Comparison, bound and words of each bound there is."""
        told = (
            (operator.ge, self.least, "at least"),
            (operator.gt, self.above, "above"),
            (operator.le, self.most, "at most"),
            (operator.lt, self.below, "below"),
        )
        return [(holds, bound, words) for holds, bound, words in told if bound is not None]

    def settled(self, flag: str, value: object) -> object:
        """The value as options hold it. Raises UserError for an empty text, and a number that is not finite or out of
        its bounds."""
        for each in value if isinstance(value, tuple) else (value,):
            self._refuse_absurd(flag, each)
        if self.check is not None:
            self.check(value)
        if callable(self.path):
            return self.path(value)
        return absolute(value) if self.path and isinstance(value, str) else value

    def _refuse_absurd(self, flag: str, value: object) -> None:
        if value == "" and not self.empty:
            raise UserError(f"{flag} is empty: give a value, or leave the flag out")
        if self.named and isinstance(value, str) and value not in self.named and not {".", ":"} & set(value):
            hint = nearest(value, self.named)
            raise UserError(f"{flag} {value}: not known{hint}. Known are {', '.join(self.named)}; {OTHERS}")
        if not isinstance(value, (int, float)):
            return
        if not math.isfinite(value):
            raise UserError(f"{flag} {value}: must be a finite number")
        bounds = self.bounds()
        if not all(holds(value, bound) for holds, bound, _ in bounds):
            allowed = " and ".join(f"{words} {bound}" for _, bound, words in bounds)
            raise UserError(f"{flag} {value}: must be {allowed}")


def option(default: object = dataclasses.MISSING, *, help: str, **told: Any) -> Any:
    """A dataclass field that is also a command-line flag; `told` are fields of `Option`."""
    if isinstance(default, (list, dict)):
        raise TypeError("defaults are immutable: use a tuple")
    return dataclasses.field(default=default, metadata={KEY: Option(help=help, **told)})


def again(group: type, name: str, **changes: object) -> Any:
    """The option `name` of `group` once more, for a command that has another default for it, or other words."""
    item = next(each for each in dataclasses.fields(group) if each.name == name)
    default = changes.pop("default", item.default)
    return dataclasses.field(default=default, metadata={KEY: dataclasses.replace(item.metadata[KEY], **changes)})


class Declared(NamedTuple):
    """An option and the field that declares it."""

    field: dataclasses.Field[Any]
    option: Option

    @property
    def flag(self) -> str:
        """How it is given, and told of: its flag, or its name where it has none."""
        name = self.field.name
        return name.upper() if self.option.positional else "--" + name.replace("_", "-")

    @property
    def with_(self) -> str | None:
        """What it changes nothing without."""
        told = self.option.with_
        return told(self.field.name) if callable(told) else told

    @property
    def default(self) -> object:
        """As it would be written on the command line, for one that has a default."""
        value = self.field.default
        if self.option.spelled:
            return "true" if value else "false"
        return value.value if isinstance(value, Enum) else value


def declared(group: type) -> Iterator[Declared]:
    """The options that a dataclass declares itself, in order."""
    for field in dataclasses.fields(group):
        if KEY in field.metadata:
            yield Declared(field, field.metadata[KEY])
