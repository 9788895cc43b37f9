"""Compares the tokens a session holds with what the chat template prints of the same messages.

Both sequences are cut at the replies that a model sampled. Between two replies is a frame: what template and harness
wrote. A frame is cut further at special tokens into segments, and its segments are compared one by one:

    special_token_count  a frame has more, fewer or differently placed special tokens
    special_token_type   a special token is another one
    non_assistant_text   text that no assistant wrote differs
    assistant_text       text of an assistant turn differs

The first three are bugs. The last is information: a model may spell a reply unlike its template, and many templates
drop earlier reasoning from the history while the session keeps what was sampled.

Invariant: a difference inside a sampled reply is never one of the first three, whatever tokens it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.cut_render import Sampled, canonical, opening_of, without_reasoning
from miles_lite.tito.encode import Encoder
from miles_lite.tito.tito import NO_OPTIONS, Tito

Kind = Literal["special_token_count", "special_token_type", "non_assistant_text", "assistant_text"]
BUGS: tuple[Kind, ...] = ("special_token_count", "special_token_type", "non_assistant_text")
REASONING_DROPPED = "the template drops this reasoning from the history; the session keeps it"
CONTEXT = 60
"""Characters shown on each side of the first difference."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference. `segment_index` counts the segments of the template's render; the texts are around it."""

    type: Kind
    segment_index: int
    expected_text: str
    actual_text: str
    detail: str

    @property
    def is_bug(self) -> bool:
        return self.type in BUGS

    @property
    def by_design(self) -> bool:
        """Whether nothing but reasoning that the template drops from the history differs."""
        return self.detail.startswith(REASONING_DROPPED)

    def as_json(self) -> JsonObject:
        return asdict(self)


def compare(
    tito: Tito,
    messages: Sequence[Message],
    ids: Sequence[int] | np.ndarray,
    sampled: Sequence[Sampled],
    *,
    tools: Tools | None = None,
    options: JsonMapping = NO_OPTIONS,
    open_turn: bool = False,
) -> list[Mismatch]:
    """What differs between `ids` and the render of `messages`, in the order of the text; [] when nothing does.

    `sampled` are the replies in `ids`, in order. What follows the last message's own reply is not compared: the stop
    token that the model chose. With `open_turn` both end in a generation prompt. Raises CompareError, RenderError.
    """
    own = [list(map(int, ids[left:right])) for left, right in pairwise([0, *_bounds(sampled), len(ids)])]
    opening = opening_of(tito, options)
    frames, openers = zip(*(without_reasoning(tito, frame, opening) for frame in own[::2]), strict=True)
    expected = canonical(tito, messages, sampled, frames, tools=tools, options=options, open_turn=open_turn)
    comparing = _Comparing(tito.encoder, opening.header, _aliases(tito), expected.mark)
    found: list[Mismatch] = []
    for index, (reply, ours) in enumerate(zip(expected.replies, own[1::2], strict=True)):
        found += comparing.frame(expected.frames[index], frames[index])
        reasoning = str(messages[sampled[index].message].get("reasoning_content") or "")
        found += comparing.reply(reply, openers[index], ours, reasoning)
    if open_turn or not sampled or sampled[-1].message < len(messages) - 1:
        found += comparing.frame(expected.frames[-1], own[-1])
    return found


def _aliases(tito: Tito) -> dict[int, int]:
    """Stop tokens that stand for each other, each with the first of them."""
    alias = tito.surface.join.alias if tito.surface.join else None
    ids = [index for text in alias or () if (index := tito.encoder.id_of(text)) is not None]
    return dict.fromkeys(ids, ids[0]) if ids else {}


def _bounds(sampled: Sequence[Sampled]) -> Iterator[int]:
    for each in sampled:
        yield each.start
        yield each.end


Segment = tuple[bool, list[int]]
"""(whether this is a special token, its ids)."""


class _Comparing:
    """Counts the segments of the render while it compares piece by piece."""

    def __init__(self, encoder: Encoder, header: str, aliases: Mapping[int, int], mark: str) -> None:
        self._encoder, self._header, self._aliases, self._mark = encoder, header, aliases, mark
        header_segments = self._segments(self._ids(header))
        self._header_size = len(header_segments) - (not header_segments[-1][0]) if header_segments else 0
        self._done = 0

    def frame(self, expected: str, ours: list[int]) -> Iterator[Mismatch]:
        theirs = self._segments(self._ids(expected))
        mine = self._segments(ours)
        begin, self._done = self._done, self._done + len(theirs)
        if shifted := _shifted(theirs, mine):
            left, right = self._encoder.decode(self._ids(expected)), self._encoder.decode(ours)
            yield _mismatch("special_token_count", begin + shifted[0], left, right, shifted[1])
            return
        wanted = [self._encoder.decode(segment) for _, segment in theirs]
        found = [self._encoder.decode(segment) for _, segment in mine]
        for place, ((special, want), (_, have)) in enumerate(zip(theirs, mine, strict=True)):
            left, right = wanted[place], found[place]
            if special and self._same(want[0]) != self._same(have[0]):
                detail = f"token {want[0]} expected, {have[0]} found"
                yield _mismatch("special_token_type", begin + place, left, right, detail)
            elif not special and left != right:
                turn = slice(max(0, place - self._header_size), place + 1)
                inserted = self._is_turn("".join(wanted[turn])) and self._is_turn("".join(found[turn]))
                yield _mismatch("assistant_text" if inserted else "non_assistant_text", begin + place, left, right, "")

    def _is_turn(self, text: str) -> bool:
        """Whether this is an assistant's header and what the harness put after it."""
        return bool(self._header) and text.startswith(self._header) and text != self._header

    def reply(self, expected: str, opener: list[int], ours: list[int], reasoning: str) -> Iterator[Mismatch]:
        """`opener` is what the generation prompt says of the reasoning, before what was sampled."""
        ids = self._ids(expected)
        begin, self._done = self._done, self._done + len(self._segments(ids))
        left, right = self._encoder.decode(ids), self._encoder.decode([*opener, *ours])
        if left != right:
            dropped = left == self._encoder.decode(ours) or self._drops(left, right, reasoning)
            yield _mismatch("assistant_text", begin, left, right, REASONING_DROPPED if dropped else "")

    def _drops(self, left: str, right: str, reasoning: str) -> bool:
        """Whether `right` is `left` with this reasoning, or an empty one, before it; white space aside."""
        (tags, want), (more_tags, have) = self._leading(left), self._leading(right)
        if want == have:
            return tags != more_tags
        bare = ("".join(self._encoder.control_pattern.sub("", text).split()) for text in (left, right, reasoning))
        want, have, thought = bare
        return bool(thought) and have.endswith(want) and thought in have[: len(have) - len(want)]

    def _leading(self, text: str) -> tuple[list[str], str]:
        """The control tokens that a text begins with, and the rest."""
        tags, text = [], text.lstrip()
        while tag := self._encoder.control_pattern.match(text):
            tags.append(tag[0])
            text = text[tag.end() :].lstrip()
        return tags, text

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self._encoder.encode(text, mark=self._mark)]

    def _segments(self, ids: Sequence[int]) -> list[Segment]:
        found: list[Segment] = []
        for token in ids:
            special = token in self._encoder.special
            if special or not found or found[-1][0]:
                found.append((special, [token]))
            else:
                found[-1][1].append(token)
        return found

    def _same(self, token: int) -> int:
        return self._aliases.get(token, token)


def _shifted(theirs: Sequence[Segment], mine: Sequence[Segment]) -> tuple[int, str] | None:
    """(the first segment that differs, how), if special tokens do not stand in the same places."""
    if [special for special, _ in theirs] == [special for special, _ in mine]:
        return None
    pairs = enumerate(zip(theirs, mine, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), max(len(theirs) - 1, 0))
    wanted, found = (sum(special for special, _ in each) for each in (theirs, mine))
    how = f"{wanted} special tokens expected, {found} found" if wanted != found else "placed differently"
    return place, how


def _mismatch(kind: Kind, index: int, expected: str, actual: str, detail: str) -> Mismatch:
    """Texts cut to what surrounds their first difference."""
    pairs = enumerate(zip(expected, actual, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(expected), len(actual)))
    window = slice(max(0, place - CONTEXT), place + CONTEXT)
    where = f"differs at character {place} of {len(expected)} expected, {len(actual)} found"
    return Mismatch(kind, index, expected[window], actual[window], f"{detail}; {where}" if detail else where)
