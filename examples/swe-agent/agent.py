"""mini-swe-agent, unmodified, as the agent of `--custom-agent-function-path examples/swe-agent/agent.py:run`.

Invariant: an episode ends with a reward or an exception. What the agent does wrong (edits that fail, replies without a
command, too many steps) is reward 0 with an exit status; what the harness or the model server does wrong is raised.
Agents run as threads of one process: importing mini-swe-agent takes seconds, an episode milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing litellm waits for a download
os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
os.environ.setdefault("MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT", "1")  # the session retries; a refusal is final

import httpx
import litellm
from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import Submitted
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel
from prompts import ACTION_REGEX, FORMAT_ERROR, INSTANCE, OBSERVATION, SUBMIT, SYSTEM
from pydantic import BaseModel
from workspace import Workspace

STEP_LIMIT = 4
COMMAND_SECONDS = 10
TEST_SECONDS = 10
MODEL_SECONDS = 600

AGENTS = ThreadPoolExecutor(max_workers=128, thread_name_prefix="swe-agent")
litellm.suppress_debug_info = True
litellm.client_session = httpx.Client(limits=httpx.Limits(max_connections=None))  # one pool for all base URLs


async def run(
    base_url: str,
    prompt: Any,
    request_kwargs: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    api_key: str = "none",
    **_: Any,
) -> dict[str, Any]:
    """One episode: the agent works on a copy of `metadata["files"]`, then `metadata["hidden_tests"]` decide.

    base_url        the session's OpenAI endpoint, ending in /v1
    api_key         the session's key
    prompt          the task: a string, or chat messages of which the last is taken
    request_kwargs  sampling parameters of the chat requests
    Returns reward (1.0 or 0.0), exit_status, turns, and seconds: model_query_time, env_execution_time, eval_time.
    """
    task = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return await asyncio.get_running_loop().run_in_executor(
        AGENTS, _episode, base_url, api_key, task, dict(request_kwargs), dict(metadata)
    )


def _episode(
    base_url: str, api_key: str, task: str, request_kwargs: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    with Workspace(metadata["files"]) as workspace:
        model = TimedModel(
            model_name=f"openai/{request_kwargs.pop('model', 'policy')}",
            model_kwargs={"api_base": base_url, "api_key": api_key, "timeout": MODEL_SECONDS, **request_kwargs},
            cost_tracking="ignore_errors",
            action_regex=ACTION_REGEX,
            format_error_template=FORMAT_ERROR,
            observation_template=OBSERVATION,
        )
        environment = WorkspaceEnvironment(workspace)
        agent = DefaultAgent(
            model,
            environment,
            system_template=SYSTEM,
            instance_template=INSTANCE,
            step_limit=STEP_LIMIT,
            cost_limit=0,
        )
        try:
            exit_status = agent.run(task)["exit_status"]
        except litellm.exceptions.ContextWindowExceededError:
            exit_status = "ContextWindowExceeded"
        start = time.perf_counter()
        passed = exit_status == "Submitted" and workspace.passes(metadata["hidden_tests"], timeout=TEST_SECONDS)
        return {
            "reward": float(passed),
            "exit_status": exit_status,
            "turns": agent.n_calls,
            "model_query_time": model.seconds,
            "env_execution_time": environment.seconds,
            "eval_time": time.perf_counter() - start,
        }


class TimedModel(LitellmTextbasedModel):
    """mini-swe-agent's model; adds up the seconds that its requests took."""

    seconds = 0.0

    def _query(self, messages: list[dict[str, str]], **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return super()._query(messages, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class WorkspaceEnvironmentConfig(BaseModel):
    timeout: float = COMMAND_SECONDS


class WorkspaceEnvironment:
    """mini-swe-agent's `Environment` protocol over a `Workspace`."""

    def __init__(self, workspace: Workspace) -> None:
        self.config = WorkspaceEnvironmentConfig()
        self.workspace = workspace
        self.seconds = 0.0

    def execute(self, action: dict[str, Any], cwd: str = "") -> dict[str, Any]:
        start = time.perf_counter()
        result = self.workspace.bash(action["command"], timeout=self.config.timeout)
        self.seconds += time.perf_counter() - start
        first, _, rest = result.output.lstrip().partition("\n")
        if first.strip() == SUBMIT.removeprefix("echo ") and result.returncode == 0:
            extra = {"exit_status": "Submitted", "submission": rest}
            raise Submitted({"role": "exit", "content": rest, "extra": extra})
        return {"output": result.output, "returncode": result.returncode, "exception_info": ""}

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        return self.config.model_dump() | kwargs

    def serialize(self) -> dict[str, Any]:
        return {"info": {"config": {"environment": self.config.model_dump(mode="json")}}}
