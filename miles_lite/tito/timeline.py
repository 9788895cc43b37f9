"""A conversation put together again from its turns: its messages, its ids, and what of them was sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from miles_lite.tito.chat_messages import Message
from miles_lite.tito.cut_render import Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What a turn adds after the last `drop` ids before it. `stopped`: the last output id is the stop token."""

    messages: Sequence[Message]
    reply: Message
    drop: int
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    stopped: bool


@dataclass(slots=True)
class Timeline:
    """`sampled` are the replies within `ids`, without stop tokens."""

    messages: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)


def timeline(path: Iterable[Added]) -> Timeline:
    """From the root to a leaf."""
    made = Timeline()
    for turn in path:
        if turn.drop:
            del made.ids[-turn.drop :]
            last = made.sampled[-1]
            made.sampled[-1] = replace(last, end=min(last.end, len(made.ids)))
        made.messages += turn.messages
        made.ids += turn.prompt_ids
        start = len(made.ids)
        made.sampled.append(Sampled(len(made.messages), start, start + len(turn.output_ids) - turn.stopped))
        made.ids += turn.output_ids
        made.messages.append(turn.reply)
    return made
