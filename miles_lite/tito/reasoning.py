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
        body = self._body(text, inside)
        if body is None:
            return "", text
        reasoning, closed, content = body.partition(self.closes)
        if closed:
            return reasoning.strip("\n"), content.lstrip("\n")
        if self.ends and (end := body.find(self.ends)) >= 0:
            return body[:end].strip("\n"), body[end:]
        return body.lstrip("\n"), ""

    def begun(self, text: str, *, inside: bool) -> tuple[str, str]:
        if self.opens.startswith(text.lstrip()):
            return "", ""
        body = self._body(text, inside)
        if body is None or self.closes in body:
            return self.split(text, inside=inside)
        tags = (self.closes, self.ends) if self.ends else (self.closes,)
        if self.ends:
            body = body.partition(self.ends)[0]
        return hold_back(body, *tags).strip("\n"), ""

    def _body(self, text: str, inside: bool) -> str | None:
        """What follows the opening tag; None for a reply without reasoning."""
        start = text.lstrip()
        if start.startswith(self.opens):
            return start[len(self.opens) :]
        return text if inside or self.always else None


def hold_back(text: str, *tags: str) -> str:
    """`text` without an ending that may be the beginning of a tag."""
    return text[: len(text) - max((_overlap(text, tag) for tag in tags), default=0)]


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag` and is not all of it."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)
