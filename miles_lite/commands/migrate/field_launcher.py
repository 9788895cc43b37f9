"""What is read of a launcher.

Invariant: each word of it that looks like a flag and stands in no comment is in `command`, in an array that `command`
names, or in `by_hand` with its line. A word stays what the shell has: its source is printed, never put together anew.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FLAG = re.compile(r"(?<![\w-])--(?=[A-Za-z$])[\w${}.-]*")
"""What looks like a flag; also one whose name a shell puts together."""
NAME = re.compile(r"--[A-Za-z][\w.-]*$")
"""What a flag is whose name is known."""
GLUED = re.compile(r"""(["']?)(--[A-Za-z][\w.-]*)=(.*)""", re.DOTALL)
"""A flag and its value as one word, the quotation mark before them."""
TRAIN = re.compile(r"(?:^|[/\s\"'])train\w*\.py\b")
"""What a run of miles or slime is started by."""


@dataclass(frozen=True, slots=True)
class Word:
    """`source`: as a shell has it, with its quotes; `said`: what it says, None where a shell expands it; its line, from
    1, and its place in bytes."""

    source: str
    said: str | None
    line: int
    at: int = 0

    @property
    def text(self) -> str:
        return self.source if self.said is None else self.said

    @property
    def flag(self) -> str | None:
        """Of a word that is a flag, or begins with one and `=`: its name, with its dashes."""
        glued = GLUED.fullmatch(self.source)
        name = glued[2] if glued is not None else self.text.partition("=")[0]
        return name if NAME.match(name) else None

    @property
    def value(self) -> Word | None:
        """What stands behind its `=`."""
        if (glued := GLUED.fullmatch(self.source)) is not None:
            said = None if self.said is None else self.said.partition("=")[2]
            return Word(glued[1] + glued[3], said, self.line, self.at)
        if self.said is None or "=" not in self.said:
            return None
        said = self.said.partition("=")[2]
        return Word(shlex.quote(said), said, self.line, self.at)


def word_of(text: str, line: int) -> Word:
    """A word that says the text, of which a shell expands what has a `$`."""
    if "$" not in text:
        return Word(shlex.quote(text), text, line)
    escaped = text.replace('"', '\\"')
    return Word(f'"{escaped}"', None, line)


@dataclass(frozen=True, slots=True)
class Found:
    """A flag with its dashes, its values, and its line; `glued`: the first value stands behind a `=`."""

    flag: str
    values: tuple[Word, ...]
    line: int
    glued: bool = False

    @property
    def source(self) -> str:
        """As the launcher has it."""
        first, *more = [self.flag, *(each.source for each in self.values)]
        return " ".join([f"{first}={more[0]}", *more[1:]] if self.glued else [first, *more])


@dataclass
class Launcher:
    """`command`: the flags behind train.py, and the names of arrays of them, in order; `arrays`: by name; `variables`:
    lines and assignments that values need, as they were; `by_hand`: lines and what of them is not translated."""

    command: list[Found | str] = field(default_factory=list)
    arrays: dict[str, list[Found]] = field(default_factory=dict)
    variables: list[tuple[int, str]] = field(default_factory=list)
    by_hand: list[tuple[int, str]] = field(default_factory=list)

    def found(self, each: Found | str) -> list[Found]:
        """What a part of the command says."""
        return [each] if isinstance(each, Found) else self.arrays[each]

    def flags(self) -> Iterator[Found]:
        """All that are translated, in the order of the command."""
        return (found for each in self.command for found in self.found(each))

    def leave(self, flags: Sequence[Found], why: str) -> None:
        """By hand, with their values."""
        self.by_hand += [(each.line, f"{each.source}: {why}") for each in flags]


def paired(words: Sequence[Word]) -> list[Found]:
    """Words as flags with their values; what stands before the first flag is none."""
    flags: list[Found] = []
    for word in words:
        if (flag := word.flag) is not None:
            value = word.value
            flags.append(Found(flag, () if value is None else (value,), word.line, value is not None))
        elif flags:
            last = flags[-1]
            flags[-1] = Found(last.flag, (*last.values, word), last.line, last.glued)
    return flags
