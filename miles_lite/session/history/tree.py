"""The trajectory tree: an append-only forest of turns, each holding only what it adds.

Invariant: a turn never changes once committed; the context of a turn is the context of its parent, without the last
`drop` tokens, followed by `prompt_ids` and `output_ids`. `attach` reads only; `commit` is the only writer. Attaching a
request walks the turns that it replays, comparing as they stand the messages that each of them added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from sys import intern

import numpy as np

from miles_lite.session.history.agent_identity import Caller, Hints
from miles_lite.session.history.match import Matcher
from miles_lite.session.history.turn_record import Output, Turn, backwards, pack_ids, sampling
from miles_lite.tito.chat_messages import Message

_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs: after `turn` (None: a new root), whose path its first `matched` messages replay.

    `root` says why a new root is begun: first, diverged, role (undeclared or unproved), no_suffix, options,
    reanchored; None for no root. `rewritten` tool calls of the turn's reply came back with other arguments.
    """

    turn: Turn | None
    matched: int
    caller: Caller
    root: str | None = None
    rewritten: int = 0


class Tree:
    """The turns of one session, in the order in which they were committed.

    It may be read on another thread while a turn is committed, and is then read with or without that turn. `slow`: to
    find a request's place and ids took long the last time. The first `restored` turns are another session's.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.slow = False
        self.restored = 0
        self.turns: list[Turn] = []
        self._children: list[tuple[Turn, ...]] = [()]
        self._sent: list[tuple[Message, ...]] = []
        self._callers: dict[bytes, Caller] = {}

    def copy(self) -> Tree:
        """The same turns, to which none is added while they are read."""
        tree = Tree(self.matcher)
        tree.turns, tree._children, tree._sent = list(self.turns), list(self._children), list(self._sent)
        return tree

    def attach(self, messages: Sequence[Message], caller: Caller) -> Place:
        """The caller's deepest turn whose path begins `messages`; of equals the latest."""
        request = tuple(messages)
        best, matched, number = None, 0, -1
        found = [(child, 0) for child in self.children(None) if child.caller.seed == caller.seed]
        while found:
            turn, at = found.pop()
            end = self.replayed(turn, request, at)
            if end:
                if end > matched or (end == matched and turn.number > number):
                    best, matched, number = turn, end, turn.number
                for child in self._children[turn.number + 1]:
                    found.append((child, end))
        return self.after(best, request, matched, caller)

    def after(self, turn: Turn | None, messages: Sequence[Message], matched: int, caller: Caller) -> Place:
        """The place after `turn`, whose path the first `matched` messages replay."""
        rewritten = self.matcher.rewritten(turn.reply, messages[matched - 1]) if turn else 0
        return Place(turn, matched, caller, rewritten=rewritten)

    def replayed(self, turn: Turn, messages: tuple[Message, ...], at: int) -> int:
        """Where `messages` go on after replaying from `at` what `turn` added and its reply; 0 when they do not.

        The form in which a client sent them is remembered: the next time a comparison of the two is all it costs.
        """
        known = self._sent[turn.number]
        end = at + len(known)
        sent = messages[at:end]
        if sent == known:
            return end
        if len(sent) < len(known) or sent[-1].get("role") != "assistant":
            return 0
        if not self.matcher.same_reply(turn.reply, sent[-1]):
            return 0
        if self.matcher.rewritten(turn.reply, sent[-1]) and self._shares_ids(turn):
            return 0
        if not all(map(self.matcher.same, turn.messages, sent[:-1])):
            return 0
        self._sent[turn.number] = tuple(map(_sharing, known, sent))
        return end

    def _shares_ids(self, turn: Turn) -> bool:
        """Whether a sibling gave out an id that the turn gave out, as models do that number their calls themselves.

        Which of them a call with that id and other arguments was, cannot be told.
        """
        mine = _call_ids(turn)
        return any(not mine.isdisjoint(_call_ids(other)) for other in self.children(turn.parent) if other is not turn)

    def children(self, turn: Turn | None) -> tuple[Turn, ...]:
        """Turns that come right after `turn`, or begin a root, earliest first."""
        return self._children[0 if turn is None else turn.number + 1]

    def context(self, turn: Turn | None, drop: int = 0) -> np.ndarray:
        """int32 ids up to and including the turn's output, without the last `drop`; None has no ids."""
        parts = [_NOTHING]
        for step, sampled in backwards(turn, drop):
            parts += [sampled, step.prompt_ids]
        return np.concatenate(parts[::-1])

    def sent(self) -> list[Message]:
        """The latest turn's path, each message in the form in which a client sent it last."""
        path = self.turns[-1].path() if self.turns else []
        return [message for turn in path for message in self._sent[turn.number]]

    def history(self, turn: Turn) -> list[Message]:
        """The messages of a turn's path as the session holds them, replies included."""
        return [message for step in turn.path() for message in step.added]

    def request_keys(self, turns: Sequence[Turn]) -> list[tuple[int | bytes, bytes]]:
        """What each of the turns was asked, and where: equal for the same request at the same place."""
        places = [turn.caller.seed if turn.parent is None else turn.parent.number for turn in turns]
        count = Counter(places)
        return [
            (place, _digest(b"".join(map(self.matcher.digest, turn.messages))) if count[place] > 1 else b"")
            for place, turn in zip(places, turns, strict=True)
        ]

    def commit(
        self,
        place: Place,
        messages: Sequence[Message],
        *,
        reply: Message,
        prompt_ids: np.ndarray,
        drop: int,
        output: Output,
        retries: int | None = None,
        hints: Hints = (),
    ) -> Turn:
        """Add a turn at `place`; `messages` are those of the request that the place has not matched."""
        parent = place.turn
        turn = Turn(
            number=len(self.turns),
            parent=parent,
            caller=self._known(place.caller),
            added=(*map(_kept, messages), reply),
            start=(parent.end if parent else 0) - drop,
            drop=drop,
            prompt_bytes=pack_ids(prompt_ids),
            output=self._sampled(output),
            root=place.root,
            retries=retries,
            hints=self.turns[-1].hints if self.turns and self.turns[-1].hints == hints else hints,
        )
        self.turns.append(turn)
        self._sent.append(turn.added)
        self._children.append(())
        self._children[0 if parent is None else parent.number + 1] += (turn,)
        return turn

    def has_tools_of(self, caller: Caller) -> bool:
        """Whether a turn holds the caller's tools."""
        known = self._callers.get(caller.seed)
        return known is not None and (known.tools is not None or caller.tools is None)

    def _known(self, caller: Caller) -> Caller:
        """The caller, holding the tools and options that an earlier turn of it holds, where these are equal."""
        known = self._callers.get(caller.seed)
        if known is None or known.options is None:
            self._callers[caller.seed] = known = caller
        return known if known.options == caller.options else replace(caller, tools=known.tools)

    def _sampled(self, output: Output) -> Output:
        """The output, holding the parameters that the turn before holds, where these are equal."""
        params = self.turns[-1].output.params if self.turns else None
        return replace(output, params=params) if params == output.params else output

    def superseded(self) -> set[int]:
        """Numbers of the turns whose request was provably sent again, and answered by another turn."""
        return {turn.retries for turn in self.turns if turn.retries is not None}

    def leaves(self) -> list[Turn]:
        return [turn for turn in self.turns if not self.children(turn)]


def _call_ids(turn: Turn) -> set[str]:
    return {call["id"] for call in turn.reply.get("tool_calls") or () if call.get("id")}


def _kept(message: Message) -> Message:
    """The message, holding the one text of its role that there is."""
    return {**message, "role": intern(message["role"])}


def _sharing(known: Message, sent: Message) -> Message:
    """`sent`, holding the values of `known` wherever they are equal, so that a text is kept once."""
    if known == sent:
        return known
    return {key: known[key] if key in known and known[key] == value else value for key, value in sent.items()}


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def describe(tree: Tree) -> list[Mapping[str, object]]:
    """The turns as plain data, for people to look at."""
    return [
        {
            "turn": turn.number,
            "parent": turn.parent.number if turn.parent else None,
            "messages": len(turn.messages),
            "prompt_tokens": turn.end - turn.output.size,
            "completion_tokens": turn.output.size,
            "finish_reason": turn.output.finish_reason,
            "weight_versions": [list(span) for span in turn.output.spans],
            "sampling": sampling(turn.output),
        }
        for turn in tree.turns
    ]
