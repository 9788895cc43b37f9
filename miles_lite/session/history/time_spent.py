"""Where the time of a session went, by its turns.

Invariant: derived from the tree alone. Requests that ran at once are counted each, so that the sum may be more than the
time that passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from miles_lite.process.json_types import JsonObject
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn


def time_spent(tree: Tree) -> JsonObject:
    """Seconds: `model` in requests, `prefill` of that until engines had their first tokens (null where one did not
    say), and `tools` by name: from the turn that called them to the request that brings their results. Tools that one
    turn called share its time."""
    turns = tree.turns[tree.restored :]
    first = [turn.output.prefill for turn in turns]
    known = [seconds for seconds in first if seconds is not None]
    tools: dict[str, float] = {}
    for names, seconds in _waits(turns):
        for name in names:
            tools[name] = tools.get(name, 0.0) + seconds / len(names)
    return {
        "model": sum(turn.output.finished - turn.output.started for turn in turns),
        "prefill": sum(known) if known and len(known) == len(first) else None,
        "tools": tools,
    }


def _waits(turns: Sequence[Turn]) -> Iterator[tuple[list[str], float]]:
    """Of each turn that called tools and was told of them, which, and for how long it waited."""
    told: set[int] = set()
    for turn in turns:
        parent = turn.parent
        if parent is None or parent.number in told or not any(said["role"] == "tool" for said in turn.messages):
            continue
        told.add(parent.number)
        if names := [str(call["function"]["name"]) for call in parent.reply.get("tool_calls") or ()]:
            yield names, max(0.0, turn.output.started - parent.output.finished)
