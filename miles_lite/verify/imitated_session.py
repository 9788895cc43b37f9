"""Holds a conversation as a session would, with a model that writes what the chat template prints of its replies.

Invariant: every token is either a prompt's, as `Tito` builds it, or written once and never tokenized again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from miles_lite.process.json_types import JsonMapping
from miles_lite.tito import Tito
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.cut_render import Sampled, beyond, canonical, opening_of, without_reasoning


@dataclass(slots=True)
class Buffer:
    """What a session holds: ids, and which of them were sampled as which message."""

    ids: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)

    def frames(self) -> list[list[int]]:
        """What is not sampled, before each reply and after the last."""
        bounds = [0, *(edge for each in self.sampled for edge in (each.start, each.end)), len(self.ids)]
        return [self.ids[left:right] for left, right in zip(bounds[::2], bounds[1::2], strict=True)]


def imitate(tito: Tito, messages: Sequence[Message], *, tools: Tools | None, options: JsonMapping) -> Buffer:
    """The buffer of a session in which every assistant message was sampled; it ends in a generation prompt.

    Messages begin with a prompt and do not end in an assistant message. Raises RenderError, SuffixError, CompareError.
    """
    replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    buffer = Buffer([int(token) for token in tito.first(messages[: replies[0]], tools=tools, options=options).ids])
    for reply, end in zip(replies, [*replies[1:], len(messages)], strict=True):
        stop = _write(tito, buffer, messages[: reply + 1], tools, options)
        history, appended = messages[: reply + 1], messages[reply + 1 : end]
        if stop is None:
            opener = int(tito.append(history, appended, stop=None, tools=tools, options=options).ids[0])
            stop = opener if opener in tito.encoder.control.values() else None
        if stop is not None:
            buffer.ids.append(stop)
        suffix = tito.append(history, appended, stop=stop, tools=tools, options=options)
        del buffer.ids[len(buffer.ids) - suffix.drop :]
        buffer.ids += [int(token) for token in suffix.ids]
    return buffer


def _write(
    tito: Tito, buffer: Buffer, messages: Sequence[Message], tools: Tools | None, options: JsonMapping
) -> int | None:
    """Sample the last message; returns the stop token that the template prints after it, if it prints one."""
    start, opening = len(buffer.ids), opening_of(tito, options)
    buffer.sampled.append(Sampled(len(messages) - 1, start, start))
    frames = [without_reasoning(tito, frame, opening)[0] for frame in buffer.frames()]
    printed = canonical(tito, messages, buffer.sampled, frames, tools=tools, options=options, open_turn=False)
    said = beyond(tito, buffer.ids, printed.replies[-1])
    buffer.ids += [int(token) for token in tito.encoder.encode(said, mark=printed.mark)]
    buffer.sampled[-1] = replace(buffer.sampled[-1], end=len(buffer.ids))
    stop = tito.encoder.control_pattern.search(printed.frames[-1])
    return tito.encoder.id_of(stop[0]) if stop else None
