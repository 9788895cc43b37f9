"""A planner beside the agent: it puts assistant messages of its own between the agent's tool calls.

    --custom-agent-function-path examples/swe-agent/planner.py:run --tito-allowed-append-roles tool user assistant

Invariant: what the planner says is context. The policy reads it in the assistant's voice and is never trained on it.
"""

from __future__ import annotations

from functools import partial

from harness import Message, Model, execute, opening, trainable, work
from workspace import Workspace

STEP_LIMIT = 4
PLAN = ("look at the code", "edit the code", "submit")


def note(done: int) -> list[Message]:
    """What the planner says after `done` commands."""
    return [{"role": "assistant", "content": f"PLAN: next, {PLAN[min(done, len(PLAN) - 1)]}."}]


def play(task: str, model: Model, workspace: Workspace) -> str:
    return work(opening(task), model.chat, partial(execute, workspace), limit=STEP_LIMIT, after=note)


run = trainable(play)
