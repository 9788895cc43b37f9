"""`openenv:URL`: an environment server of OpenEnv that runs, over its WebSocket (`/ws`: reset, step, close).

--environment-args

    action       the field of an action that takes the model's words (default "message"); "json": they are the action
    observation  the field of an observation that is shown (default: its only text, else the whole as JSON)
    reset        what each reset is given beside `seed`
    concurrency  episodes at once in each agent worker (a server's own bound is often 1); default: as many as agents
    step_timeout seconds that the server may take (default 60)
    max_turns, total, size  as of gem
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import httpx

from miles_lite.environments.episodes import Begun, Step, TextLoop, total_of
from miles_lite.environments.tasks import PROCEDURAL, Tasks, refuse_others, taken
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import Json, JsonMapping

OWN = ("action", "observation", "reset", "concurrency", "step_timeout", "max_turns", "total", "size")
HEALTH_SECONDS = 10.0
MAX_MESSAGE = 64 << 20


@dataclass(frozen=True)
class Server:
    """How one is spoken to. `room`: of this process's event loop."""

    url: str
    action: str
    observation: str | None
    reset: JsonMapping
    seconds: float
    room: asyncio.Semaphore | None

    def shown(self, observation: Json) -> str:
        if isinstance(observation, Mapping):
            if self.observation is not None:
                return str(observation[self.observation])
            texts = [value for name, value in observation.items() if isinstance(value, str) and name != "metadata"]
            if len(texts) == 1:
                return texts[0]
        return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)


@dataclass
class Connection:
    """See `episodes.TextEpisode`: a socket, which is the server's session."""

    server: Server
    seed: int
    _client: aiohttp.ClientSession | None = None
    _entered: bool = False
    _socket: aiohttp.ClientWebSocketResponse = field(init=False)

    async def begin(self) -> Begun:
        if self.server.room is not None:
            await self.server.room.acquire()
            self._entered = True
        self._client = aiohttp.ClientSession()
        timeout = aiohttp.ClientWSTimeout(ws_close=self.server.seconds)
        self._socket = await self._client.ws_connect(
            f"{self.server.url}/ws", timeout=timeout, max_msg_size=MAX_MESSAGE, heartbeat=self.server.seconds
        )
        step = await self._told("reset", {"seed": self.seed, **self.server.reset})
        return Begun([{"role": "user", "content": step.observation}])

    async def step(self, said: str) -> Step:
        if self.server.action != "json":
            return await self._told("step", {self.server.action: said})
        try:
            action = json.loads(said)
        except ValueError as error:
            return Step(f"error: the action is no JSON: {error}")
        return await self._told("step", action)

    async def close(self) -> None:
        if self._client is not None:
            if hasattr(self, "_socket"):
                await self._socket.send_json({"type": "close"})
                await self._socket.close()
            await self._client.close()
        if self._entered and self.server.room is not None:
            self.server.room.release()

    async def _told(self, kind: str, data: Json) -> Step:
        """Raises RuntimeError for the server's refusal, ConnectionError and TimeoutError."""
        await self._socket.send_json({"type": kind, "data": data})
        message = await self._socket.receive(timeout=self.server.seconds)
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"{self.server.url}/ws was closed at {kind}")
        answer = json.loads(message.data)
        if answer["type"] == "error":
            raise RuntimeError(f"{self.server.url} refused {kind}: {answer['data'].get('message', answer['data'])}")
        said = answer["data"]
        reward = said.get("reward")
        return Step(
            self.server.shown(said["observation"]), None if reward is None else float(reward), bool(said["done"])
        )


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError where no server answers."""
    refuse_others(args, OWN)
    url = argument.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--environment openenv:{argument}: give the server's URL, as openenv:http://127.0.0.1:8000")
    with user_error(f"--environment openenv:{argument}: no server answers there", httpx.HTTPError):
        httpx.get(f"{url}/health", timeout=HEALTH_SECONDS).raise_for_status()
    at_once = taken(args, "concurrency", int, None, least=1)
    server = Server(
        url,
        taken(args, "action", str, "message"),
        taken(args, "observation", str, None),
        taken(args, "reset", dict, {}),
        float(taken(args, "step_timeout", (int, float), 60.0, least=0.001)),
        None if at_once is None else asyncio.Semaphore(at_once),
    )
    size = taken(args, "size", int, PROCEDURAL, least=1)
    return TextLoop(
        tasks=Tasks("openenv", lambda split: size, seed),
        max_turns=taken(args, "max_turns", int, 32, least=1),
        total=total_of(args, "sum"),
        begin=lambda task: Connection(server, task.seed),
    )
