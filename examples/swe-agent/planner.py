"""A planner beside the agent: it puts assistant messages of its own between the agent's tool calls.

    --custom-agent-function-path examples/swe-agent/planner.py:run --tito-allowed-append-roles tool user assistant

Invariant: what the planner says is context. The policy reads it in the assistant's voice and is never trained on it.
"""

from __future__ import annotations

from harness import FORMAT_ERROR, LIMITS_EXCEEDED, SUBMITTED, Model, command_of, execute, opening, submits, trainable
from workspace import Workspace

STEP_LIMIT = 4
PLAN = ("look at the code", "edit the code", "submit")


def note(done: int) -> str:
    """What the planner says after `done` commands."""
    return f"PLAN: next, {PLAN[min(done, len(PLAN) - 1)]}."


def play(task: str, model: Model, workspace: Workspace) -> str:
    messages = opening(task)
    for step in range(STEP_LIMIT):
        reply = model.chat(messages)
        command = command_of(reply)
        if command is None:
            return FORMAT_ERROR
        if submits(command):
            return SUBMITTED
        shown, _ = execute(workspace, command)
        messages += [reply, {"role": "user", "content": shown}, {"role": "assistant", "content": note(step + 1)}]
    return LIMITS_EXCEEDED


run = trainable(play)
