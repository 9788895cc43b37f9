"""The tasks with this runtime's tools (tools.json) instead of a shell: what `miles-lite agent` does, as a rollout.

    python examples/swe-agent/prepare.py --out data --agent tools
    --custom-agent-function-path examples/swe-agent/tools_agent.py:run --tito-allowed-append-roles tool user

Invariant: the model sees what `miles-lite agent --tools tools.json --tool-format portable --system SYSTEM` shows it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from harness import LIMITS_EXCEEDED, SUBMITTED, Model, trainable
from workspace import Workspace, sandboxed

from miles_lite.agent.conversation import Conversation, Limits
from miles_lite.agent.formats import FORMATS
from miles_lite.agent.session_client import ContextFull
from miles_lite.agent.tools import Tool, load_tools
from miles_lite.sandboxes.shell import Shell

SYSTEM = "Fix the bug."
STEP_LIMIT = 4
TOOL_SECONDS = 15.0
"""Longer than the limit that run_test sets itself."""


def play(task: str, model: Model, workspace: Workspace) -> str:
    with Shell(timeout=TOOL_SECONDS, folder=workspace.root, sandbox="bwrap" if sandboxed() else "none") as shell:
        conversation = Conversation(
            model,
            tools(),
            shell,
            emit=lambda event: None,
            limits=Limits(max_steps=STEP_LIMIT, max_tokens=None),
            preamble=SYSTEM,
        )
        answer = conversation.say(task)
    if conversation.full:
        raise ContextFull
    return LIMITS_EXCEEDED if answer is None else SUBMITTED


@lru_cache(maxsize=1)
def tools() -> tuple[Tool, ...]:
    return tuple(load_tools(Path(__file__).with_name("tools.json")))


def system_prompt() -> str:
    """The system prompt of every episode."""
    return FORMATS["portable"].system(tools(), SYSTEM)


run = trainable(play)
