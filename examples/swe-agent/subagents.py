"""Two agents of one policy: a reader with a system prompt of its own looks, and its report opens the fixer's work.

    --custom-agent-function-path examples/swe-agent/subagents.py:run --tito-allowed-append-roles tool user

Invariant: the two share a session and no turn: each names itself in its requests. Both are trained, with the reward of
the episode.
"""

from __future__ import annotations

from functools import partial

from harness import Model, command_of, execute, opening, trainable, work
from workspace import Workspace

STEP_LIMIT = 4
READER = "Read the code with bash blocks. Reply without a block to report what is wrong."
READER_STEPS = 2


def play(task: str, model: Model, workspace: Workspace) -> str:
    report = read(task, model, workspace)
    fixer = partial(model.chat, agent="fixer")
    return work(opening(f"{task}\nReport: {report}"), fixer, partial(execute, workspace), limit=STEP_LIMIT)


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


run = trainable(play)
