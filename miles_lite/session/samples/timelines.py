"""Timeline merging: roots that go on from another timeline are put where they belong, so that each is one sample.

A root is begun when a request could not be appended, or came before what it replays. Its conversation then holds turns
of other timelines as plain messages. As in AgentJet's timeline merging, the root goes to the end of the longest one
that its messages replay, whichever came first, and what was sampled there takes the place of its re-encoding.

Invariant: turns keep their numbers and what was sampled for them; only roots move. Messages are compared by the
session's matcher: role, content, reasoning, tool calls with ids, and the agent's name. At the level `token` the ids
must agree too, so that every reply stands in the context that it was sampled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from miles_lite.process.json_types import JsonObject
from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn, pack_ids, sampling
from miles_lite.tito import RenderError, Suffix, SuffixError, Tito
from miles_lite.tito.chat_messages import Message

Append = Callable[[Sequence[Message], Sequence[Message], int | None, Caller], Suffix | None]
"""(history, appended messages, the stop token that ended the history, who asks) to what follows; None where nothing is
proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """`level` is token or text. `ignore_tools`: timelines may differ in tools. Text merges need `append`.

    `fix_drift`: at the level `text`, sampled ids replace a re-encoding that differs; without it such timelines stay
    apart.
    """

    level: str = "token"
    ignore_tools: bool = False
    fix_drift: bool = True
    append: Append | None = None


@dataclass(frozen=True, slots=True)
class Timelines:
    """The turns with their new parents. `moved` roots are no roots any more.

    The outputs of `off_context` turns were sampled after other ids than they now stand behind. `repeats` are leaves
    that say token for token what another turn said to the same request, sampled alike.
    """

    turns: Sequence[Turn]
    moved: frozenset[int] = frozenset()
    off_context: frozenset[int] = frozenset()
    repeats: frozenset[int] = frozenset()

    def leaves(self) -> list[Turn]:
        """Turns that nothing follows, earliest first."""
        parents = {turn.parent.number for turn in self.turns if turn.parent}
        return [turn for turn in self.turns if turn.number not in parents | self.repeats]


@dataclass(frozen=True, slots=True)
class _Move:
    """`root` goes behind `host`, without the host's last `drop` tokens; `ids` are what is left of its prompt."""

    host: Turn
    drop: int
    ids: np.ndarray
    exact: bool


def merge(tree: Tree, merging: Merging) -> Timelines:
    """The session's turns with every root where it belongs. The tree stays as it is."""
    lengths = _lengths(tree.turns)
    deepest = sorted(tree.turns, key=lambda turn: (-lengths[turn.number], -turn.number))
    hosts = [(lengths[turn.number], turn) for turn in deepest]
    moves = {turn.number: move for turn in tree.children(None) if (move := _move(tree, turn, hosts, merging))}
    if not moves:
        return Timelines(tree.turns, repeats=frozenset(_repeats(tree, tree.turns)))
    turns = _rebuilt(reversed(deepest), moves)
    off: set[int] = set()
    for turn in turns:
        drifted = turn.number in moves and not moves[turn.number].exact
        if drifted or (turn.parent is not None and turn.parent.number in off):
            off.add(turn.number)
    turns.sort(key=lambda turn: turn.number)
    return Timelines(turns, frozenset(moves), frozenset(off), frozenset(_repeats(tree, turns)))


def appender(tito: Tito) -> Append:
    """Appending as a request would, with the caller's tools and template options."""

    def append(
        history: Sequence[Message], messages: Sequence[Message], stop: int | None, caller: Caller
    ) -> Suffix | None:
        options = caller.options or {}
        if not tito.proved(sorted(tito.roles(messages, options)), options):
            return None
        try:
            return tito.append(history, messages, stop=stop, tools=caller.tools, options=options)
        except (RenderError, SuffixError):
            return None

    return append


def _lengths(turns: Sequence[Turn]) -> list[int]:
    """By turn number: messages of its path, replies included. A root is longer than any path that it replays."""
    lengths: list[int] = []
    for turn in turns:
        before = lengths[turn.parent.number] if turn.parent else 0
        lengths.append(before + len(turn.messages) + 1)
    return lengths


def _move(tree: Tree, root: Turn, hosts: Sequence[tuple[int, Turn]], merging: Merging) -> _Move | None:
    """Behind the deepest turn that it replays and that passes the check of the level. `hosts` are (length, turn)."""
    for end, host in hosts:
        if end <= len(root.messages) and _replays(tree, root, host, end, merging):
            move = _by_token(tree, root, host)
            if move is None and merging.level == "text":
                move = _by_text(tree, root, host, end, merging)
            if move is not None:
                return move
    return None


def _replays(tree: Tree, root: Turn, host: Turn, end: int, merging: Merging) -> bool:
    """Whether the root's first `end` messages are the host's path. The last is looked at first."""
    last = root.messages[end - 1]
    if last.get("role") != "assistant" or not _same_agent(host, root, merging):
        return False
    if host.reply != last and not tree.matcher.same_reply(host.reply, last):
        return False
    at = 0
    for step in host.path():
        at = tree.replayed(step, root.messages, at)
        if not at:
            return False
    return True


def _same_agent(turn: Turn, root: Turn, merging: Merging) -> bool:
    if merging.ignore_tools:
        return turn.caller.name == root.caller.name
    return turn.caller == root.caller


def _by_token(tree: Tree, root: Turn, host: Turn) -> _Move | None:
    """The root's prompt begins with the host's context, but perhaps for the stop token that ended it."""
    for drop in (0, 1) if host.output.stop is not None else (0,):
        end = host.end - drop
        if end < len(root.prompt_ids) and np.array_equal(tree.context(host, drop), root.prompt_ids[:end]):
            return _Move(host, drop, root.prompt_ids[end:], exact=True)
    return None


def _by_text(tree: Tree, root: Turn, host: Turn, end: int, merging: Merging) -> _Move | None:
    """The root's prompt ends with what its further messages append to the host; what is before may be spelled anew."""
    if merging.append is None or not merging.fix_drift:
        return None
    suffix = merging.append(tree.history(host), root.messages[end:], host.output.stop, root.caller)
    if suffix is None or not len(suffix.ids):
        return None
    if not np.array_equal(root.prompt_ids[-len(suffix.ids) :], suffix.ids):
        return None
    return _Move(host, suffix.drop, suffix.ids, exact=False)


def _rebuilt(turns: Iterable[Turn], moves: dict[int, _Move]) -> list[Turn]:
    """The turns, which come shortest path first, each behind its new parent."""
    made: dict[int, Turn] = {}
    for turn in turns:
        move = moves.get(turn.number)
        before = move.host if move else turn.parent
        parent = made[before.number] if before else None
        drop = move.drop if move else turn.drop
        changes: JsonObject = {"prompt_bytes": pack_ids(move.ids)} if move else {}
        start = (parent.end if parent else 0) - drop
        made[turn.number] = replace(turn, parent=parent, start=start, drop=drop, **changes)
    return list(made.values())


def _repeats(tree: Tree, turns: Sequence[Turn]) -> list[int]:
    """Leaves that were asked for what an earlier turn, which went on, had been asked, and said the same ids."""
    went_on = {turn.parent.number for turn in turns if turn.parent}
    said: dict[tuple[int | bytes, bytes], list[Turn]] = {}
    repeats = []
    for turn, request in zip(turns, tree.request_keys(turns), strict=True):
        earlier = said.setdefault(request, [])
        if turn.number not in went_on and any(
            other.number in went_on
            and other.output.finished <= turn.output.started
            and np.array_equal(other.output.ids, turn.output.ids)
            and other.prompt_bytes == turn.prompt_bytes
            and sampling(other.output) == sampling(turn.output)
            for other in earlier
        ):
            repeats.append(turn.number)
        earlier.append(turn)
    return repeats
