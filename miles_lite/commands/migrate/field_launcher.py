"""What is read of a launcher.

Invariant: each word of it that looks like a flag and stands in no comment is in `arrays`, or in `by_hand` with its
line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

FLAG = re.compile(r"(?<![\w-])--(?=[A-Za-z$])[\w${}.-]*")
"""What looks like a flag; also one whose name a shell puts together."""
NAME = re.compile(r"--[A-Za-z][\w.-]*$")
"""What a flag is whose name is known."""
TRAIN = re.compile(r"(?:^|[/\s\"'])train\w*\.py\b")
"""What a run of miles or slime is started by."""
OTHERS = "MISC_ARGS"
"""The array of those that stand behind train.py themselves."""


class Literal(str):
    """A word that holds what it says, also where that has a `$`."""

    __slots__ = ()


class Source(str):
    """A word as the shell wrote it, with its quotes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A flag with its dashes, its values, and its line, from 1."""

    flag: str
    values: tuple[str, ...]
    line: int


@dataclass
class Launcher:
    """`arrays`: by name; `variables`: assignments that values need, as they were; `by_hand`: lines and what of them is
    not translated."""

    arrays: dict[str, list[Found]] = field(default_factory=dict)
    variables: list[str] = field(default_factory=list)
    by_hand: list[tuple[int, str]] = field(default_factory=list)


def paired(words: Sequence[tuple[str, int]]) -> list[Found]:
    """Words with their lines as flags with their values; what stands before the first flag is none."""
    flags: list[Found] = []
    for word, line in words:
        flag, equals, value = word.partition("=")
        if NAME.match(flag):
            flags.append(Found(flag, (type(word)(value),) if equals else (), line))
        elif flags:
            last = flags[-1]
            flags[-1] = Found(last.flag, (*last.values, word), last.line)
    return flags
