"""System and developer messages where a template takes none: several at the beginning, or one amid a conversation.

Those at the beginning are joined into one where the template does not print each of them in its place; a later one,
where the surface refuses the role, is printed as a message of the user. Nothing else is changed.

Invariant: what becomes of a message depends on the messages before it and the surface, so that a conversation that
goes on is arranged as its beginning was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from miles_lite.tito.chat_messages import Message, text_of
from miles_lite.tito.surface import AppendSurface

SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Arranged:
    """`joined` messages went into the first one; `placed` ones are printed as the user's."""

    messages: Sequence[Message]
    joined: int = 0
    placed: int = 0


def needed(messages: Sequence[Message], *, begins: bool) -> bool:
    """Whether there is a system message that may have to be arranged. `begins`: no others come before these."""
    return any(message["role"] in SYSTEM for message in messages[1 if begins else 0 :])


def arrange(messages: Sequence[Message], surface: AppendSurface, *, begins: bool) -> Arranged:
    """The messages as the template takes them."""
    lead = len(list(takewhile(_instructs, messages))) if begins else 0
    head, tail = list(messages[:lead]), list(messages[lead:])
    joined = max(0, lead - 1) if surface.joins else 0
    if joined:
        texts = [text for message in head if (text := text_of(message.get("content")))]
        head = [{"role": "system", "content": "\n\n".join(texts)}]
    placed = 0
    if surface.roles["system"].law is not None:
        placed = sum(map(_instructs, tail))
        tail = [{**message, "role": role_of(message, surface)} for message in tail]
    return Arranged([*head, *tail], joined, placed)


def role_of(message: Message, surface: AppendSurface) -> str:
    """The role under which a message after the beginning is printed."""
    if not _instructs(message):
        return str(message["role"])
    return "system" if surface.roles["system"].law is None else "user"


def _instructs(message: Message) -> bool:
    return message["role"] in SYSTEM
