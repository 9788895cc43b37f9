"""What a verified session goes through, action by action.

Invariant: a schedule depends on its arguments alone; it inserts assistant messages last, since they are never sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Action(Enum):
    """Each is followed by a completion."""

    TOOL_RESULT = "T"
    USER_FOLLOWUP = "U"
    SYSTEM_REMINDER = "S"
    ROLLBACK = "R"
    FORCE_FINAL = "F"
    ASSISTANT_INPUT = "A"


def schedule(roles: Sequence[str], *, cycles: int) -> list[Action]:
    """The actions for a harness that may append `roles` (tool always).

    A cycle is T, then U T and S where those roles are allowed, then R. After the first cycle comes one more R.
    """
    cycle = [Action.TOOL_RESULT]
    if "user" in roles:
        cycle += [Action.USER_FOLLOWUP, Action.TOOL_RESULT]
    if "system" in roles:
        cycle += [Action.SYSTEM_REMINDER]
    cycle += [Action.ROLLBACK]
    actions = [*cycle, Action.ROLLBACK, *(cycle * (cycles - 1))]
    if "user" in roles:
        actions.append(Action.FORCE_FINAL)
    if "assistant" in roles:
        actions.append(Action.ASSISTANT_INPUT)
    return actions
