"""Why a timeline forked: at which message and in which field a request left what the session held.

Invariant: derived from the tree alone, and from no turn that was committed later; a turn that goes on from a leaf is no
fork, nor is the first root.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from miles_lite.process.json_types import JsonObject
from miles_lite.session.history.match import MATCHERS, FieldMatcher
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn
from miles_lite.tito.chat_messages import Message

LATEST = 8
"""How many of the earlier siblings a turn is compared with."""

_UNCHANGED = ("role", "no_suffix", "options", "reanchored")
"""Reasons to begin a root although the request changed nothing that the session holds."""

_REPLAY = MATCHERS["replay"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fork:
    """Turn `turn` forked off `parent` (None: it begins a root), away from `sibling`.

    `message` is the index in the request at which it differs, `field` what differs there. `reason`: parallel (the
    sibling was still being answered), retry (the same request, provably sent again), again (asked the same once more,
    for another answer), shorter (the request ends where the sibling's
    goes on), reply or edit (a reply, or a message of the harness, was changed), system (another system prompt), tools
    and agent (another caller); role and no_suffix (nothing was changed, but the template cannot append it),
    options (nothing was changed, but the template begins otherwise under those of the request) and reanchored
    (nothing was changed, but a hop refused the history that the session holds).
    """

    turn: int
    parent: int | None
    sibling: int
    message: int | None
    field: str | None
    reason: str


def fork_of(tree: Tree, turn: Turn) -> Fork | None:
    """How the turn forked; None when it did not."""
    siblings = [other for other in tree.children(turn.parent) if other.number < turn.number][-LATEST:]
    if not siblings:
        return None
    closest = max(siblings, key=lambda other: (other.caller == turn.caller, _shared(tree, other, turn), other.number))
    shared = _shared(tree, closest, turn)
    parent = turn.parent.number if turn.parent else None
    offset = sum(len(step.messages) + 1 for step in turn.parent.path()) if turn.parent else 0
    at = _known(tree, turn) if turn.root in _UNCHANGED else offset + shared
    field, reason = _difference(closest, turn, shared)
    overlaps = reason in ("retry", "again", "shorter", "edit") and closest.output.finished > turn.output.started
    return Fork(
        turn=turn.number,
        parent=parent,
        sibling=closest.number,
        message=None if reason in ("retry", "again", "tools", "agent") else at,
        field=field,
        reason="parallel" if overlaps else reason,
    )


def counts(tree: Tree, turn: Turn) -> dict[str, int]:
    """What the turn counts for: `roots_<reason>` if it begins a root, `forks` and `forks_<reason>` if it forked."""
    fork = fork_of(tree, turn)
    roots = {f"roots_{turn.root}": 1} if turn.root else {}
    return roots | ({"forks": 1, f"forks_{fork.reason}": 1} if fork else {})


def all_forks(tree: Tree) -> list[JsonObject]:
    """Every fork of the session, in the order of its turns, as plain data."""
    return [asdict(fork) for turn in tree.turns if (fork := fork_of(tree, turn))]


def report(session_id: str, tree: Tree, turn: Turn) -> None:
    """One line of log if the turn forked, with the fields of the fork in `extra` for structured handlers."""
    fork = fork_of(tree, turn)
    if fork is not None:
        fields = asdict(fork)
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        log.warning(
            "timeline forked: session=%s %s", session_id, text, extra={"session_id": session_id, "fork": fields}
        )


def _shared(tree: Tree, other: Turn, turn: Turn) -> int:
    """How many messages of `turn` what `other` added begins with, its reply included."""
    matcher, said = _matcher(tree), len(other.messages)
    for index, message in enumerate(turn.messages):
        if index > said or not (
            matcher.same_reply(other.reply, message) if index == said else matcher.same(other.messages[index], message)
        ):
            return index
    return len(turn.messages)


def _known(tree: Tree, root: Turn) -> int:
    """How many messages of the root replay a path of its caller's earlier turns."""
    longest, found = 0, [(turn, 0) for turn in tree.children(None) if turn.caller == root.caller]
    while found:
        turn, at = found.pop()
        end = tree.replayed(turn, root.messages, at) if turn.number < root.number else 0
        if end:
            longest = max(longest, end)
            found += [(child, end) for child in tree.children(turn)]
    return longest


def _difference(other: Turn, turn: Turn, at: int) -> tuple[str | None, str]:
    """(the field, the reason) for which `turn` does not follow `other`, from message `at` of what both added."""
    if turn.root in _UNCHANGED:
        return "role" if turn.root == "role" else None, turn.root
    if other.caller != turn.caller:
        return ("agent", "agent") if other.caller.name != turn.caller.name else ("tools", "tools")
    if at == len(turn.messages):
        if at < len(other.messages):
            return None, "shorter"
        return None, "again" if turn.retries is None else "retry"
    theirs: Sequence[Message] = (*other.messages, other.reply)
    if at >= len(theirs):
        return None, "edit"
    field = _field(theirs[at], turn.messages[at])
    if at == len(other.messages):
        return field, "reply"
    return field, "system" if at == 0 and turn.messages[0].get("role") == "system" else "edit"


def _field(stored: Message, message: Message) -> str:
    return _REPLAY.differs(stored, message) or "other"


def _matcher(tree: Tree) -> FieldMatcher:
    """The session's, but not a user's function: that may fail, and a fork is told after its turn was committed."""
    return tree.matcher if isinstance(tree.matcher, FieldMatcher) else _REPLAY
