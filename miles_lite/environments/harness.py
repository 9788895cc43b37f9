"""Environments whose harness is out of process: a program or a server that is given the session's URL and a task, plays
to its end, and says what it earned.

Invariant: a harness that is not done in time, breaks, or says no reward is the environment's failure, and no reward.
Its tokens are the session's whatever it says of them, and one that asked the session nothing has none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from miles_lite.environments.environment_args import AT_ONCE, TIMEOUT, Argument
from miles_lite.environments.episodes import Room, Step, environments_failure, in_time, room_for
from miles_lite.environments.tasks import Task, Tasks, report
from miles_lite.hooks import RewardFunction, Rows
from miles_lite.process.json_types import Json, JsonMapping, JsonObject


@dataclass(frozen=True, slots=True)
class Model:
    """What a harness asks: the session's OpenAI URL, its key, and the run's sampling parameters, which the session
    sees to."""

    base_url: str
    api_key: str
    request_kwargs: JsonMapping

    @property
    def variables(self) -> dict[str, str]:
        """Of a program's environment, by the names that the providers' SDKs read."""
        root = self.base_url.removesuffix("/v1")
        return {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_KEY": self.api_key,
            "ANTHROPIC_BASE_URL": root,
            "ANTHROPIC_API_KEY": self.api_key,
            "GOOGLE_GEMINI_BASE_URL": root,
            "GEMINI_API_KEY": self.api_key,
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a harness ended. `response`: its last words, for a reward that reads them; `numbers`: more that is logged of
    it. Raises ValueError for a reward that is no finite number."""

    reward: float
    response: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if Step("", self.reward).reward is None:
            raise ValueError("the harness said no reward")


@dataclass(frozen=True)
class HarnessLoop:
    """`run` plays a task to its end, within `seconds`; it is cancelled where it takes longer. `room`: for those that
    play at once; who waits for it is not timed."""

    tasks: Tasks
    run: Callable[[Task, Model], Awaitable[Ended]]
    seconds: float
    room: Room
    reward: RewardFunction | None = None

    def rows(self, split: str) -> Rows:
        return self.tasks.rows(split)

    async def agent(
        self, *, metadata: JsonObject, base_url: str, api_key: str, request_kwargs: JsonMapping, **_: Json
    ) -> JsonMapping:
        """See `hooks.AgentFunction`."""
        task = self.tasks.of(metadata)
        with environments_failure():
            async with self.room, in_time(self.seconds, f"{task.label}: the harness"):
                ended = await self.run(task, Model(base_url, api_key, request_kwargs))
        return report(task, reward=float(ended.reward), response=ended.response, numbers=ended.numbers)


def bounded(
    run: Callable[[Task, Model], Awaitable[Ended]],
    args: JsonMapping,
    *,
    tasks: Tasks,
    at_once: Argument[int] | Argument[int | None] = AT_ONCE,
) -> HarnessLoop:
    """With what --environment-args say of every harness: TIMEOUT and AT_ONCE. Raises UserError."""
    return HarnessLoop(tasks, run, TIMEOUT.of(args), room_for(at_once.of(args)))
