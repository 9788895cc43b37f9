"""An agent whose framework repeats failed steps: it shows the model what went wrong, and takes that away again.

    --custom-agent-function-path examples/swe-agent/retrying.py:run --tito-allowed-append-roles tool user assistant

A step without a command, or whose command failed, is tried again with the failed reply and the error in the
conversation. When a try succeeds, the conversation goes on as if it had been the first: failed tries and errors are
gone from it.

Invariant: every reply that the policy sampled is trained once, where it was said: a failed try in the branch that saw
no error, a successful one in the branch that saw the errors before it. In the branch that goes on it is context.
"""

from __future__ import annotations

from harness import LIMITS_EXCEEDED, SUBMITTED, Message, Model, command_of, execute, opening, submits, trainable
from workspace import Workspace

STEP_LIMIT = 4
TRIES = 3
NO_COMMAND = "Error: one bash block, please."


def play(task: str, model: Model, workspace: Workspace) -> str:
    messages = opening(task)
    for _ in range(STEP_LIMIT):
        errors: list[Message] = []
        for _ in range(TRIES):
            reply = model.chat(messages + errors)
            command = command_of(reply)
            if command is not None and submits(command):
                return SUBMITTED
            shown, code = (NO_COMMAND, 1) if command is None else execute(workspace, command)
            if code == 0:
                break
            errors += [reply, {"role": "user", "content": shown}]
        else:
            return "TooManyErrors"
        messages += [reply, {"role": "user", "content": shown}]
    return LIMITS_EXCEEDED


run = trainable(play)
