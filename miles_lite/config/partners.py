"""Options that do nothing by themselves: each says at its declaration what it goes with (`Option.needs`, `with_`).

    needs="use_rs"                        refused without --use-rs
    with_="use_kl_loss or kl_coef"        without either a line says that it changes nothing
    with_="loss_type=sapo"                that very value, or an import path of the user's, which may read anything
    with_="no num_rollout and save"       every part; of a part with `no` the other option must be off, or another value

What all options of a group do nothing without stands at the group (`WITH`).

Invariant: an option that has its default changes nothing anyway, and is not spoken of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from miles_lite.config.option import KEY, Declared
from miles_lite.errors import UserError

WITH = "with_"
"""Key of a group's metadata."""
ROLLED_OUT = {WITH: "no loss_type=sft_loss and no load_debug_rollout_data"}
"""Of groups that only engines and agents look at."""

Values = Mapping[str, object]
"""Of options, by name."""


@dataclass(frozen=True)
class Partner:
    """An option of which something is wanted: that it is on, that it is off, or a value of it."""

    name: str
    value: str | None = None
    off: bool = False

    @classmethod
    def read(cls, text: str) -> Partner:
        told = text.strip()
        name, _, value = told.removeprefix("no ").partition("=")
        return cls(name, value or None, told.startswith("no "))

    @property
    def flag(self) -> str:
        named = "--" + self.name.replace("_", "-")
        return f"{named} {self.value}" if self.value else named

    def holds(self, values: Values) -> bool:
        """Whether it is as it is wanted."""
        given = values[self.name]
        if self.value is not None:
            path = isinstance(given, str) and bool({".", ":"} & set(given))
            return (str(given) == self.value) != self.off or (path and not self.off)
        return bool(given) != self.off


def parts(text: str) -> list[list[Partner]]:
    """Of each of which one must be there."""
    return [[Partner.read(each) for each in part.split(" or ")] for part in text.split(" and ")]


def missing(text: str, values: Values) -> str | None:
    """In words, the first part of which nothing is there; None where none is missing."""
    for part in parts(text):
        if not any(each.holds(values) for each in part):
            return ("beside " if part[0].off else "without ") + " or ".join(each.flag for each in part)
    return None


def every_value(options: Any, *, with_: str | None = None) -> Iterator[tuple[Declared, object, str | None]]:
    """The options of a command as it was given them, those of its groups included, and what the group does nothing
    without."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if KEY in field.metadata:
            yield Declared(field, field.metadata[KEY]), value, with_
        elif dataclasses.is_dataclass(value):
            yield from every_value(value, with_=field.metadata.get(WITH))


def alone(options: object) -> dict[str, list[str]]:
    """Flags that change nothing, by what is missing. Raises UserError for one that is refused so."""
    given = list(every_value(options))
    values = {each.field.name: value for each, value, _ in given}
    found: dict[str, list[str]] = {}
    for each, value, group in given:
        if value == each.field.default:
            continue
        if each.option.needs and (why := missing(each.option.needs, values)) is not None:
            flag, wanted = each.flag, why.removeprefix("without ")
            raise UserError(f"{flag} needs {wanted}: give that too, or leave {flag} out")
        lacking = (missing(text, values) for text in (group, each.with_) if text)
        if (why := next(filter(None, lacking), None)) is not None:
            found.setdefault(why, []).append(each.flag)
    return found
