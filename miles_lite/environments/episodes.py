"""Environments of episodes: a task is begun, answered turn by turn, and ended.

Two loops are given, and an adapter says how an episode begins: `TextLoop`, whose episodes read what the model writes,
and `ToolLoop`, whose episodes are called as tools. Invariant: what an episode raises is the environment's failure, and
no reward; an episode that was begun is closed; a conversation ends after `max_turns` answers, and where the model's
context is full, with the rewards that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from miles_lite.environments.environment_args import Argument
from miles_lite.environments.session_chat import Chat, ContextFullError, Message, RefusedError
from miles_lite.environments.tasks import Task, Tasks, report
from miles_lite.errors import RolloutError, SetupError, UserError, Where
from miles_lite.hooks import RewardFunction, Rows
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

R = TypeVar("R")
Room: TypeAlias = AbstractAsyncContextManager[None]
"""What is entered by whoever has a place."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an episode says to one action. `reward`: of this step; None: it says none. Raises ValueError for what is no
    text, no finite number, neither true nor false: nothing is made of it."""

    observation: str
    reward: float | None = None
    done: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.observation, str):
            raise ValueError(f"an observation is text, and this is {self.observation!r:.200}")
        if self.reward is not None and not (isinstance(self.reward, Real) and math.isfinite(self.reward)):
            raise ValueError(f"a step's reward is a finite number, and this is {self.reward!r:.200}")
        if self.done not in (True, False):
            raise ValueError(f"whether an episode is done is true or false, and this is {self.done!r:.200}")


@dataclass(frozen=True, slots=True)
class Begun:
    """What an episode begins with: its first messages, and the tools that it has."""

    messages: list[Message]
    tools: list[Message] | None = None


class Episode(Protocol):
    """One task under way."""

    async def begin(self) -> Begun: ...
    async def close(self) -> None:
        """Also called where `begin` failed."""


@runtime_checkable
class JudgedEpisode(Protocol):
    """One that says at its end what it earned."""

    async def judge(self) -> float:
        """Asked once, when the model is done, in the place of what steps gave."""


class TextEpisode(Episode, Protocol):
    async def step(self, said: str, /) -> Step:
        """The answer to what the model wrote."""


class ToolEpisode(Episode, Protocol):
    async def call(self, name: str, given: JsonMapping, /) -> Step:
        """The answer of a tool; what is wrong with the call is an answer."""


@dataclass
class Play:
    """What came of an episode so far. `rewards`: of the steps that gave one."""

    turns: int = 0
    tool_calls: int = 0
    seconds: float = 0.0
    rewards: list[float] = field(default_factory=list)
    response: str = ""
    done: bool = False

    def take(self, step: Step) -> str:
        if step.reward is not None:
            self.rewards.append(float(step.reward))
        self.done = self.done or step.done
        return step.observation


Total = Callable[[Sequence[float]], float]
TOTALS: Mapping[str, Total] = {"sum": sum, "last": lambda rewards: rewards[-1] if rewards else 0.0}
"""The reward of an episode, of those of its steps."""
TOTAL = Argument("total", str, "sum", choices=TOTALS)


def total_of(args: JsonMapping, default: str) -> Total:
    """What --environment-args say under `total`. Raises UserError."""
    return TOTALS[TOTAL.by_default(default).of(args)]


Answer = Callable[[Message, Play], Awaitable[list[Message]]]


@dataclass(frozen=True)
class Loop:
    """How episodes are played."""

    tasks: Tasks
    max_turns: int
    total: Total
    reward: RewardFunction | None = None

    def rows(self, split: str) -> Rows:
        return self.tasks.rows(split)

    async def _play(self, episode: Episode, answer: Answer, task: Task, asked: JsonMapping) -> JsonObject:
        play = Play()
        try:
            with _environment(play):
                begun = await episode.begin()
                messages = list(begun.messages)
            async with Chat(asked["base_url"], asked["api_key"], asked["request_kwargs"], tools=begun.tools) as chat:
                while not play.done and play.turns < self.max_turns:
                    try:
                        said = await chat.ask(messages)
                    except ContextFullError as error:
                        if play.turns == 0:
                            raise RolloutError(Where.ENVIRONMENT, f"its first words are too long: {error}") from error
                        break
                    except RefusedError as error:
                        raise RolloutError(Where.ENVIRONMENT, f"what it says cannot be sent: {error}") from error
                    play.turns += 1
                    play.response = said.get("content") or ""
                    messages.append(said)
                    with _environment(play):
                        messages += await answer(said, play)
                    if chat.cut:
                        break
                seconds = chat.seconds
            if isinstance(episode, JudgedEpisode):
                with _environment(play):
                    play.rewards = [Step("", await episode.judge()).reward or 0.0]
        finally:
            with _environment(play):
                await episode.close()
        return report(
            task,
            reward=self.total(play.rewards),
            response=play.response,
            turns=play.turns,
            tool_calls=play.tool_calls,
            model_query_time=seconds,
            env_execution_time=play.seconds,
            numbers={"finished": float(play.done)},
        )


@dataclass(frozen=True)
class TextLoop(Loop):
    """The model's words are the action; the answer is the user's next message."""

    begin: Callable[[Task], TextEpisode] = field(kw_only=True)

    async def agent(self, *, metadata: JsonObject, **asked: Json) -> JsonMapping:
        """See `hooks.AgentFunction`."""
        task = self.tasks.of(metadata)
        episode = self.begin(task)

        async def answer(said: Message, play: Play) -> list[Message]:
            return [{"role": "user", "content": play.take(await episode.step(said.get("content") or ""))}]

        return await self._play(episode, answer, task, asked)


@dataclass(frozen=True)
class ToolLoop(Loop):
    """The model calls tools; an answer without a call ends the episode."""

    begin: Callable[[Task], ToolEpisode] = field(kw_only=True)

    async def agent(self, *, metadata: JsonObject, **asked: Json) -> JsonMapping:
        """See `hooks.AgentFunction`."""
        task = self.tasks.of(metadata)
        episode = self.begin(task)

        async def answer(said: Message, play: Play) -> list[Message]:
            calls = said.get("tool_calls") or []
            play.done = not calls
            results = []
            for each in calls:
                play.tool_calls += 1
                told = play.take(await self._called(episode, each["function"]))
                results.append({"role": "tool", "tool_call_id": each["id"], "content": told})
            return results

        return await self._play(episode, answer, task, asked)

    async def _called(self, episode: ToolEpisode, function: JsonMapping) -> Step:
        try:
            given = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            return Step(f"error: the arguments are no JSON: {error}")
        if not isinstance(given, dict):
            return Step("error: the arguments must be an object")
        return await episode.call(function["name"], given)


@contextlib.contextmanager
def _environment(play: Play) -> Iterator[None]:
    """Counts the time in it; what it raises is the environment's failure. Raises as `environments_failure` does."""
    began = time.monotonic()
    try:
        with environments_failure():
            yield
    finally:
        play.seconds += time.monotonic() - began


@contextlib.contextmanager
def environments_failure() -> Iterator[None]:
    """What is raised in it is the environment's failure. Raises RolloutError, and SetupError where it is the user's to
    mend."""
    try:
        yield
    except (RolloutError, SetupError):
        raise
    except UserError as error:
        raise SetupError(str(error)) from error
    except Exception as error:
        raise RolloutError(Where.ENVIRONMENT, f"{type(error).__name__}: {error}") from error


def answered(asking: Coroutine[object, object, R]) -> R:
    """What it comes to, in a loop and a thread of its own: who makes an environment may be in a loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asking).result()


def room_for(at_once: int | None) -> Room:
    """For so many at once in this process's event loop; None: for any."""
    return contextlib.nullcontext() if at_once is None else asyncio.Semaphore(at_once)


@contextlib.asynccontextmanager
async def in_time(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises TimeoutError, which says `what` took longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"{what} took longer than {seconds:g} s") from error
