"""`openenv:URL`: an environment server of OpenEnv that runs, over its WebSocket (`/ws`: reset, step, close).

--environment-args

    action       the field of an action that takes the model's words (default "message"); "json": they are the action
    observation  the field of an observation that is shown (default: its only text, else the whole as JSON)
    reset        what each reset is given beside `seed`
    concurrency  episodes at once in each agent worker; a server's own bound is often 1 (default: none)

max_turns, total, size and step_timeout are as of gem.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import aiohttp

from miles_lite.environments.environment_args import AT_ONCE, MAX_TURNS, SIZE, STEP_TIMEOUT, Argument, refuse_others
from miles_lite.environments.episodes import TOTAL, Begun, Room, Step, TextLoop, in_time, room_for, total_of
from miles_lite.environments.server_page import page
from miles_lite.environments.tasks import Tasks
from miles_lite.errors import UserError
from miles_lite.hooks import Environment
from miles_lite.process.json_types import Json, JsonMapping

ACTION, CONCURRENCY = Argument("action", str, "message"), replace(AT_ONCE, name="concurrency")
OBSERVATION: Argument[str | None] = Argument("observation", str, None)
RESET: Argument[JsonMapping] = Argument("reset", dict, {})
OWN = (ACTION, OBSERVATION, RESET, CONCURRENCY, STEP_TIMEOUT, MAX_TURNS, TOTAL, SIZE)
MAX_MESSAGE = 64 << 20


@dataclass(frozen=True)
class Server:
    """How one is spoken to."""

    url: str
    action: str
    observation: str | None
    reset: JsonMapping
    seconds: float
    room: Room

    def render(self, observation: Json) -> str:
        if isinstance(observation, Mapping):
            if self.observation is not None:
                return str(observation[self.observation])
            texts = [value for name, value in observation.items() if isinstance(value, str) and name != "metadata"]
            if len(texts) == 1:
                return texts[0]
        return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)


class Connection:
    """See `episodes.TextEpisode`: a socket, which is the server's session."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server, self._seed = server, seed
        self._open = AsyncExitStack()

    async def begin(self) -> Begun:
        server, enter = self._server, self._open.enter_async_context
        await enter(server.room)
        client = await enter(aiohttp.ClientSession())
        address, timeout = f"{server.url}/ws", aiohttp.ClientWSTimeout(ws_close=server.seconds)
        async with in_time(server.seconds, f"{address}: to connect"):
            self._socket = await enter(client.ws_connect(address, timeout=timeout, max_msg_size=MAX_MESSAGE))
        step = await self._request("reset", {"seed": self._seed, **server.reset})
        return Begun([{"role": "user", "content": step.observation}])

    async def step(self, said: str) -> Step:
        try:
            action = json.loads(said) if self._server.action == "json" else {self._server.action: said}
        except ValueError as error:
            return Step(f"error: the action is no JSON: {error}")
        return await self._request("step", action)

    async def close(self) -> None:
        await self._open.aclose()

    async def _request(self, kind: str, data: Json) -> Step:
        """Raises RuntimeError for the server's refusal, ConnectionError, TimeoutError, and ValueError for what is no
        answer."""
        url = self._server.url
        async with in_time(self._server.seconds, f"{url}: its answer to {kind}"):
            await self._socket.send_json({"type": kind, "data": data})
            received = await self._socket.receive()
        if received.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"{url} answered {kind} with {received.type.name}: {received.data!r:.200}")
        answer = json.loads(received.data)
        said = answer.get("data") if isinstance(answer, Mapping) else None
        if isinstance(answer, Mapping) and answer.get("type") == "error":
            why = said.get("message", said) if isinstance(said, Mapping) else said
            raise RuntimeError(f"{url} refused {kind}: {why}")
        if not isinstance(said, Mapping) or not {"observation", "done"} <= said.keys():
            raise ValueError(f"{url} answered {kind} without data of observation and done: {received.data:.200}")
        return Step(self._server.render(said["observation"]), said.get("reward"), said["done"])


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError where no server answers."""
    refuse_others(args, OWN)
    url = argument.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--environment openenv:{argument}: give the server's URL, as openenv:http://127.0.0.1:8000")
    page(f"{url}/health", f"--environment openenv:{argument}: no server of OpenEnv answers there")
    told = ACTION.of(args), OBSERVATION.of(args), RESET.of(args), STEP_TIMEOUT.of(args)
    server, size = Server(url, *told, room_for(CONCURRENCY.of(args))), SIZE.of(args)
    return TextLoop(
        tasks=Tasks("openenv", lambda split: size, seed),
        max_turns=MAX_TURNS.of(args),
        total=total_of(args, "sum"),
        begin=lambda task: Connection(server, task.seed),
    )
