"""The trajectory tree: an append-only forest of turns, each holding only what it adds.

Invariant: a turn never changes once committed; the context of a turn is the context of its parent, without the last
`drop` tokens, followed by `prompt_ids` and `output_ids`. `attach` reads only; `commit` is the only writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from miles_lite.session.match import Matcher
from miles_lite.tito.messages import Message, Tools

Span = tuple[int, int, int]
"""(weight version, start, end): which version sampled output tokens start..end-1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What an engine produced for one request.

    ids int32 [n], logprobs float32 [n] under the distribution sampled from, spans covering 0..n; `stop` is the stop
    token when it was sampled (it is then the last id). `started` and `finished` are seconds of one clock.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    spans: tuple[Span, ...]
    temperature: float
    finish_reason: str
    stop: int | None
    started: float
    finished: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One request and its reply. `messages` are those this turn adds, `start` is where its prompt ids begin."""

    number: int
    parent: Turn | None
    messages: tuple[Message, ...]
    reply: Message
    request: bytes
    start: int
    drop: int
    prompt_ids: np.ndarray
    output: Output

    @property
    def end(self) -> int:
        """Tokens of the whole context, this turn's output included."""
        return self.start + len(self.prompt_ids) + len(self.output.ids)

    def path(self) -> list[Turn]:
        """From the root to this turn."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs: after `turn` (None: a new root), whose path its first `matched` messages replay."""

    turn: Turn | None
    matched: int
    seed: bytes


class Tree:
    """The turns of one session, in the order in which they were committed."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.turns: list[Turn] = []
        self._children: dict[tuple[int, bytes], list[Turn]] = {}
        self._prefixes: set[tuple[int, bytes]] = set()

    def attach(self, messages: Sequence[Message], tools: Tools | None) -> Place:
        """The deepest turn whose path begins `messages`; of equals the latest. Other tools are another root."""
        seed = blake2b(self.matcher.digest({"content": "", "name": list(tools or [])}), digest_size=16).digest()
        states: list[tuple[Turn | None, bytes]] = [(None, seed)]
        best = Place(None, 0, seed)
        for index, message in enumerate(messages):
            following: list[tuple[Turn | None, bytes]] = []
            digest = None
            for turn, chain in states:
                if message.get("role") == "assistant":
                    following += [(child, seed) for child in self._replies(turn, chain, message)]
                if self._prefixes:
                    digest = digest or self.matcher.digest(message)
                    longer = _link(chain, digest)
                    if (_number(turn), longer) in self._prefixes:
                        following.append((turn, longer))
            states = following
            reached = [turn for turn, chain in states if turn is not None and chain is seed]
            if reached:
                best = Place(max(reached, key=_number), index + 1, seed)
            if not states:
                break
        return best

    def context(self, turn: Turn | None, drop: int = 0) -> np.ndarray:
        """int32 ids up to and including the turn's output, without the last `drop`; empty for None."""
        parts: list[np.ndarray] = []
        for step in turn.path() if turn else ():
            if step.drop:
                parts[-1] = parts[-1][: -step.drop]
            parts += [step.prompt_ids, step.output.ids]
        if not parts:
            return np.empty(0, np.int32)
        whole = np.concatenate(parts)
        return whole[: len(whole) - drop]

    def history(self, turn: Turn) -> list[Message]:
        """The messages of a turn's path as the session holds them, replies included."""
        return [message for step in turn.path() for message in (*step.messages, step.reply)]

    def commit(
        self,
        place: Place,
        messages: Sequence[Message],
        *,
        reply: Message,
        prompt_ids: np.ndarray,
        drop: int,
        output: Output,
    ) -> Turn:
        """Add a turn at `place`; `messages` are those of the request that the place has not matched."""
        parent = place.turn
        chains = [place.seed]
        for message in messages:
            chains.append(_link(chains[-1], self.matcher.digest(message)))
        turn = Turn(
            number=len(self.turns),
            parent=parent,
            messages=tuple(messages),
            reply=reply,
            request=chains[-1],
            start=(parent.end if parent else 0) - drop,
            drop=drop,
            prompt_ids=prompt_ids,
            output=output,
        )
        self.turns.append(turn)
        self._children.setdefault((_number(parent), chains[-1]), []).append(turn)
        self._prefixes.update((_number(parent), chain) for chain in chains[1:])
        return turn

    def leaves(self) -> list[Turn]:
        parents = {turn.parent.number for turn in self.turns if turn.parent}
        return [turn for turn in self.turns if turn.number not in parents]

    def _replies(self, turn: Turn | None, chain: bytes, message: Message) -> list[Turn]:
        children = self._children.get((_number(turn), chain), ())
        return [child for child in children if self.matcher.same_reply(child.reply, message)]


def _number(turn: Turn | None) -> int:
    return -1 if turn is None else turn.number


def _link(chain: bytes, digest: bytes) -> bytes:
    return blake2b(chain + digest, digest_size=16).digest()


def versions_per_token(spans: Sequence[Span], size: int) -> np.ndarray:
    """int32 [size]: spans laid out per token."""
    versions = np.zeros(size, np.int32)
    for version, start, end in spans:
        versions[start:end] = version
    return versions


def describe(tree: Tree) -> list[Mapping[str, object]]:
    """The turns as plain data, for people to look at."""
    return [
        {
            "turn": turn.number,
            "parent": turn.parent.number if turn.parent else None,
            "messages": len(turn.messages),
            "prompt_tokens": turn.end - len(turn.output.ids),
            "completion_tokens": len(turn.output.ids),
            "finish_reason": turn.output.finish_reason,
            "weight_versions": [list(span) for span in turn.output.spans],
        }
        for turn in tree.turns
    ]
