"""`ors:URL/ENVIRONMENT`: a server of the Open Reward Standard that runs (ors-sdk): its tasks, its tools, its rewards.

A reward comes with a tool's answer; an episode earns the last one. --environment-args

    max_turns, total  as of gem; by default the last
    tool_timeout      seconds that a tool may take (default 120)

The server's key is ORS_API_KEY, as of its own client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import cache
from typing import TypeVar

from miles_lite.environments.environment_args import MAX_TURNS, refuse_others, seconds
from miles_lite.environments.episodes import TOTAL, Begun, Step, ToolLoop, answered, in_time, total_of
from miles_lite.environments.session_chat import Message
from miles_lite.environments.tasks import Task, Tasks
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import Json, JsonMapping

TOOL_TIMEOUT = seconds("tool_timeout", 120.0)
OWN = (MAX_TURNS, TOTAL, TOOL_TIMEOUT)
ASK_SECONDS = 60.0
R = TypeVar("R")


class Session:
    """See `episodes.ToolEpisode`."""

    def __init__(self, url: str, name: str, task: Task, seconds: float) -> None:
        self._url, self._name, self._task, self._seconds = url, name, task, seconds
        self._open = AsyncExitStack()

    async def begin(self) -> Begun:
        from ors.client import AsyncORS

        self._ors = AsyncORS(self._url)  # which closes its connections when it is forgotten
        environment = self._ors.environment(self._name)
        self._open.push_async_callback(environment.client.close)
        self._session: Json = environment.session(split=self._task.split, index=self._task.place)
        async with in_time(self._seconds, f"{self._url}: to begin"):
            await self._open.enter_async_context(self._session)
            blocks = await self._session.get_prompt()
            tools = [_tool(each) for each in await self._session.list_tools()]
        return Begun([{"role": "user", "content": _text(blocks)}], tools)

    async def call(self, name: str, given: JsonMapping) -> Step:
        from ors.client import ToolCallError

        try:
            async with in_time(self._seconds, f"{self._url}: {name}"):
                said = await self._session.call_tool(name, given)
        except ToolCallError as error:
            return Step(f"error: {error}")
        return Step(_text(said.blocks), said.reward, said.finished)

    async def close(self) -> None:
        await self._open.aclose()


def _tool(told: Json) -> Message:
    schema = told.input_schema or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": told.name, "description": told.description, "parameters": schema}}


def _text(blocks: Json) -> str:
    """Raises ValueError for a picture."""
    if any(block.type != "text" for block in blocks):
        raise ValueError("it shows pictures, and prompts are text")
    return "\n".join(block.text for block in blocks)


def _asked(url: str, name: str, question: Callable[[Json], Awaitable[R]]) -> R:
    """What the environment answers, asked in a loop and a thread of its own."""

    async def ask() -> R:
        from ors.client import AsyncORS

        server = AsyncORS(url)
        environment = server.environment(name)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await question(environment)
        finally:
            await environment.client.close()

    return answered(ask())


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError where no server answers, or it has no such environment."""
    import ors.client  # noqa: F401

    refuse_others(args, OWN)
    url, _, name = argument.rstrip("/").rpartition("/")
    if not url.startswith(("http://", "https://")) or url.endswith("/"):
        raise UserError(f"--environment ors:{argument}: give URL/ENVIRONMENT, as ors:http://127.0.0.1:8080/arithmetic")

    @cache
    def size(split: str) -> int:
        with user_error(f"--environment ors:{argument}: no answer of an ORS server", Exception):
            splits = _asked(url, name, lambda environment: environment.list_splits())
            tasks = _asked(url, name, lambda environment: environment.num_tasks(split)) if split in splits else 0
        if split not in splits:
            raise UserError(f"--environment ors:{argument}: no split {split}; there are {', '.join(map(str, splits))}")
        return int(tasks)

    patience = TOOL_TIMEOUT.of(args)
    return ToolLoop(
        tasks=Tasks(f"ors.{name}", size, seed),
        max_turns=MAX_TURNS.of(args),
        total=total_of(args, "last"),
        begin=lambda task: Session(url, name, task, patience),
    )
