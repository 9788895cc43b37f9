"""The linear history policy (`--use-session-server` bare, or v1): one line of turns per agent.

A request appends to its line, or takes back at most one turn of it; declared roles only. Anything else is refused.

Invariant: pure; a refused request takes nothing back, because a turn is taken back by the turn that is committed in
its stead and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from miles_lite.session.errors import ApiError
from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.history.turn_record import Turn
from miles_lite.tito.chat_messages import Message, text_of

MAX_ROLLBACK = 1
"""Turns that a request may take back."""

Roles = Callable[[Sequence[Message]], set[str]]
"""The roles under which messages are printed after a turn."""

_Line = tuple[bytes, str | None]


def place(tree: Tree, messages: Sequence[Message], caller: Caller, *, allowed: frozenset[str], roles: Roles) -> Place:
    """Where the request goes on with its agent's line. `allowed` are the `roles` that may be appended.

    Raises ApiError 400 for a request that takes back more than one turn, or appends another role.
    """
    mine = _line(caller, messages)
    line = [tip for tip in line_ends(tree) if _line(tip.caller, tip.path()[0].messages) == mine]
    if not line:
        return Place(None, 0, caller)
    turn, matched, discarded = min((_along(tree, tip, tuple(messages)) for tip in line), key=lambda found: found[2])
    if discarded > MAX_ROLLBACK:
        raise ApiError(
            400,
            f"rollback failed: discard_count={discarded} exceeds {MAX_ROLLBACK}: the request replays "
            f"{matched} messages of the conversation, and no turn may be changed but the last",
            param=f"messages[{matched}]",
            code="rollback_failed",
        )
    if turn is not None:
        check_roles(messages, matched, allowed, roles)
    return tree.after(turn, messages, matched, caller)


def check_roles(messages: Sequence[Message], start: int, allowed: frozenset[str], roles: Roles) -> None:
    """Raises ApiError 400 when messages from `start` on have another role."""
    for index in range(start, len(messages)):
        role = messages[index]["role"]
        if not roles(messages[index : index + 1]) <= allowed:
            raise ApiError(
                400,
                f"messages[{index}]: the role {role} cannot be appended, allowed={sorted(allowed)} "
                "(--tito-allowed-append-roles)",
                param=f"messages[{index}].role",
                code="role_not_allowed",
            )


def line_ends(tree: Tree) -> list[Turn]:
    """The end of each line, and of turns that overlapped in time: leaves after which their line began no other turn."""
    lines: list[_Line] = []
    latest: dict[_Line, float] = {}
    for turn in tree.turns:
        line = lines[turn.parent.number] if turn.parent else _line(turn.caller, turn.messages)
        lines.append(line)
        latest[line] = max(latest.get(line, turn.output.started), turn.output.started)
    return [leaf for leaf in tree.leaves() if latest[lines[leaf.number]] <= leaf.output.finished]


def _along(tree: Tree, tip: Turn, messages: tuple[Message, ...]) -> tuple[Turn | None, int, int]:
    """(the last turn on the way to `tip` that the request replays, its messages, how many turns are left out)."""
    path, at = tip.path(), 0
    for done, turn in enumerate(path):
        end = tree.replayed(turn, messages, at)
        if not end:
            return turn.parent, at, len(path) - done
        at = end
    return tip, at, 0


def _line(caller: Caller, messages: Sequence[Message]) -> _Line:
    """Agents are told apart by name, tools and the text of the system prompt."""
    first = messages[0]
    return caller.seed, text_of(first.get("content")) if first["role"] in ("system", "developer") else None
