"""Where the reasoning of a reply ends and its content begins.

Invariant: what `begun` says of an unfinished text is a prefix, part by part, of what `split` says of any text that goes
on from it; it says nothing of the content before the reasoning is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

OPEN_THINK, CLOSE_THINK = "<think>", "</think>"


class Reasoning(Protocol):
    """`inside`: the generation prompt has opened the reasoning already."""

    @property
    def name(self) -> str: ...

    def split(self, text: str, *, inside: bool) -> tuple[str, str]:
        """(reasoning, content) of a whole reply."""
        ...

    def begun(self, text: str, *, inside: bool) -> tuple[str, str]:
        """What of (reasoning, content) is certain while the reply grows."""
        ...


@dataclass(frozen=True, slots=True)
class Thoughts:
    """Reasoning between two tags: where a reply begins with the first of them, or the prompt has opened it.

    Tags anywhere else are text. Newlines around the reasoning belong to the tags. `always`: every reply begins inside.
    What is never closed ends where a tool call begins, by the tag `ends`, if there is one.
    """

    opens: str = OPEN_THINK
    closes: str = CLOSE_THINK
    ends: str | None = None
    always: bool = False
    name: str = "<think> tags"

    def split(self, text: str, *, inside: bool) -> tuple[str, str]:
        start = self._start(text, inside)
        if start is None:
            return "", text
        end = text.find(self.closes, start)
        if end >= 0:
            return text[start:end].rstrip("\n"), text[end + len(self.closes) :].lstrip("\n")
        end = text.find(self.ends, start) if self.ends else -1
        return (text[start:end].rstrip("\n"), text[end:]) if end >= 0 else (text[start:], "")

    def begun(self, text: str, *, inside: bool) -> tuple[str, str]:
        if self.opens.startswith(text.lstrip()):
            return "", ""
        start = self._start(text, inside)
        if start is None or text.find(self.closes, start) >= 0:
            return self.split(text, inside=inside)
        end = text.find(self.ends, start) if self.ends else -1
        tags = (self.closes, self.ends) if self.ends else (self.closes,)
        return hold_back(text[start:end] if end >= 0 else text[start:], *tags).rstrip("\n"), ""

    def _start(self, text: str, inside: bool) -> int | None:
        """Where the reasoning begins, newlines before it left out; None for a reply without."""
        start = len(text) - len(text.lstrip())
        if text.startswith(self.opens, start):
            start += len(self.opens)
        elif inside or self.always:
            start = 0
        else:
            return None
        while text.startswith("\n", start):
            start += 1
        return start


def hold_back(text: str, *tags: str) -> str:
    """`text` without an ending that may be the beginning of a tag."""
    held = max((_overlap(text, tag) for tag in tags), default=0)
    return text[:-held] if held else text


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag` and is not all of it."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)
