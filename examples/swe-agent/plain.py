"""The loop alone: what mini-swe-agent does on these tasks, without it, so that a worker of agents starts in a second.

--custom-agent-function-path examples/swe-agent/plain.py:run
"""

from __future__ import annotations

from functools import partial

from harness import Model, execute, opening, trainable, work
from workspace import Workspace

STEP_LIMIT = 4


def play(task: str, model: Model, workspace: Workspace) -> str:
    return work(opening(task), model.chat, partial(execute, workspace), limit=STEP_LIMIT)


run = trainable(play)
