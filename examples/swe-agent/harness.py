"""What the small harnesses share: an episode on a task, the model behind a session, commands, the reward.

    run = trainable(play)      what `--custom-agent-function-path examples/swe-agent/planner.py:run` names

Invariant: as agent.py's. An episode ends with a reward or an exception; what the agent does wrong is reward 0 with an
exit status, what the harness or the model server does wrong is raised. Agents run as threads of one process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from prompts import ACTION_REGEX, SUBMIT, SYSTEM, observation
from workspace import Workspace

from miles_lite.agent.session_client import AgentSession, ContextFull

COMMAND_SECONDS = 10
TEST_SECONDS = 10
SUBMITTED = "Submitted"
LIMITS_EXCEEDED = "LimitsExceeded"
FORMAT_ERROR = "FormatError"

AGENTS = ThreadPoolExecutor(max_workers=128, thread_name_prefix="harness")
Message = dict[str, Any]


class Model(AgentSession):
    """The policy behind a session. Counts what was asked of it, and for how long."""

    turns = 0
    seconds = 0.0

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Message:
        start = time.perf_counter()
        try:
            return super().chat(messages, **options)
        finally:
            self.turns, self.seconds = self.turns + 1, self.seconds + time.perf_counter() - start


Play = Callable[[str, Model, Workspace], str]
"""`play(task, model, workspace)` works on the copy and says how it ended."""
Run = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


def trainable(play: Play) -> Run:
    """The agent function of a harness. A row's metadata holds `files` and `hidden_tests`, as make_tasks.py writes."""

    async def run(
        base_url: str,
        prompt: Any,
        request_kwargs: Mapping[str, Any],
        metadata: Mapping[str, Any],
        *,
        api_key: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        task = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        join = partial(Model.joining, base_url, api_key=api_key, request=request_kwargs)
        return await asyncio.get_running_loop().run_in_executor(AGENTS, _episode, play, join, task, metadata)

    return run


def _episode(play: Play, join: Callable[[], Model], task: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    with join() as model, Workspace(metadata["files"]) as workspace:
        began = time.perf_counter()
        try:
            exit_status = play(task, model, workspace)
        except ContextFull:
            exit_status = "ContextWindowExceeded"
        acted = time.perf_counter() - began - model.seconds
        start = time.perf_counter()
        passed = exit_status == SUBMITTED and workspace.passes(metadata["hidden_tests"], timeout=TEST_SECONDS)
        return {
            "reward": float(passed),
            "exit_status": exit_status,
            "turns": model.turns,
            "model_query_time": model.seconds,
            "env_execution_time": acted,
            "eval_time": time.perf_counter() - start,
        }


def opening(task: str, *, system: str = SYSTEM) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": task}]


def command_of(message: Message) -> str | None:
    """The one bash block of a reply; None when there is none, or more than one."""
    blocks = re.findall(ACTION_REGEX, message.get("content") or "", re.DOTALL)
    return blocks[0].strip() if len(blocks) == 1 else None


def execute(workspace: Workspace, command: str) -> tuple[str, int]:
    """(what the agent is shown, the exit code) of a command."""
    result = workspace.bash(command, timeout=COMMAND_SECONDS)
    return observation(result.output, result.returncode), result.returncode


def work(
    messages: list[Message],
    chat: Callable[[list[Message]], Message],
    act: Callable[[str], tuple[str, int]],
    *,
    limit: int,
    after: Callable[[int], list[Message]] = lambda done: [],
) -> str:
    """Command after command until the model submits, or `limit` replies; how it ended. `after(n)` are messages that
    follow the n-th result."""
    for done in range(1, limit + 1):
        reply = chat(messages)
        command = command_of(reply)
        if command is None:
            return FORMAT_ERROR
        if submits(command):
            return SUBMITTED
        shown, _ = act(command)
        messages += [reply, {"role": "user", "content": shown}, *after(done)]
    return LIMITS_EXCEEDED


def submits(command: str) -> bool:
    return command == SUBMIT
