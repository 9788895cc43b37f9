"""Two agents of one policy: a reader with a system prompt of its own looks, and its report opens the fixer's work.

    --custom-agent-function-path examples/swe-agent/subagents.py:run --tito-allowed-append-roles tool user

Invariant: the two share a session and no turn: each names itself in its requests. Both are trained, with the reward of
the episode.
"""

from __future__ import annotations

from harness import FORMAT_ERROR, LIMITS_EXCEEDED, SUBMITTED, Model, command_of, execute, opening, submits, trainable
from workspace import Workspace

STEP_LIMIT = 4
READER = "Read the code with bash blocks. Reply without a block to report what is wrong."
READER_STEPS = 2


def play(task: str, model: Model, workspace: Workspace) -> str:
    report = read(task, model, workspace)
    return fix(f"{task}\nReport: {report}", model, workspace)


def read(task: str, model: Model, workspace: Workspace) -> str:
    """The reader's report: its first reply without a command, or its last one."""
    messages = opening(task, system=READER)
    for _ in range(READER_STEPS):
        reply = model.chat(messages, agent="reader")
        command = command_of(reply)
        if command is None:
            break
        shown, _ = execute(workspace, command)
        messages += [reply, {"role": "user", "content": shown}]
    return str(reply.get("content") or "").strip()


def fix(task: str, model: Model, workspace: Workspace) -> str:
    messages = opening(task)
    for _ in range(STEP_LIMIT):
        reply = model.chat(messages, agent="fixer")
        command = command_of(reply)
        if command is None:
            return FORMAT_ERROR
        if submits(command):
            return SUBMITTED
        shown, _ = execute(workspace, command)
        messages += [reply, {"role": "user", "content": shown}]
    return LIMITS_EXCEEDED


run = trainable(play)
