"""A server of OpenEnv that hangs, lies, closes or talks nonsense costs its rollout, as the environment's failure."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from miles_lite.errors import UserError
from miles_lite.job.precheck import check_inputs
from tests.environments.played import broken, given, play
from tests.ports import free_port

Socket = web.WebSocketResponse
GOOD = {"observation": {"said": "hi"}, "reward": 0.5, "done": True}


def says(**data: Any) -> Callable[[Socket], Awaitable[None]]:
    async def answer(socket: Socket) -> None:
        await socket.send_str(json.dumps({"type": "observation", "data": GOOD | data}))

    return answer


def raw(text: str) -> Callable[[Socket], Awaitable[None]]:
    async def answer(socket: Socket) -> None:
        await socket.send_str(text)

    return answer


async def binary(socket: Socket) -> None:
    await socket.send_bytes(b"\xff")


async def closes(socket: Socket) -> None:
    await socket.close()


async def hangs(socket: Socket) -> None:
    await asyncio.sleep(60)


async def only_pings(socket: Socket) -> None:
    while not socket.closed:
        await socket.ping()
        await asyncio.sleep(0.2)


ANSWERS: dict[str, tuple[Callable[[Socket], Awaitable[None]], str]] = {
    "no JSON": (raw("<html>"), "JSONDecodeError"),
    "a list": (raw("[1]"), "without data of observation and done: [1]"),
    "nothing": (raw("null"), "without data of observation and done: null"),
    "deep": (raw("[" * 100_000), "RecursionError"),
    "a refusal in words": (raw('{"type": "error", "data": "boom"}'), "refused reset: boom"),
    "binary": (binary, "answered reset with BINARY"),
    "a reward that is none": (says(reward="high"), "a step's reward is a finite number, and this is 'high'"),
    "no number": (says(reward=float("nan")), "a step's reward is a finite number, and this is nan"),
    "an end that is none": (says(done="false"), "is true or false, and this is 'false'"),
    "it closes": (closes, "answered reset with CLOSE"),
    "it hangs": (hangs, "its answer to reset took longer than 1 s"),
    "it only pings": (only_pings, "its answer to reset took longer than 1 s"),
    "it is too much": (says(observation="x" * (65 << 20)), "answered reset with ERROR"),
    "it shakes no hands": (hangs, "to connect took longer than 1 s"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """Its URL, and what it is to do."""
    told, port = {"do": ""}, free_port()

    async def health(request: web.Request) -> web.Response:
        return web.json_response(
            [] if told["do"] == "it is another" else {}, status=500 if told["do"] == "it is ill" else 200
        )

    async def socket(request: web.Request) -> Socket:
        if told["do"] == "it shakes no hands":
            await asyncio.sleep(60)
        answered = Socket()
        await answered.prepare(request)
        async for _ in answered:
            await ANSWERS[told["do"]][0](answered)
        return answered

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/ws", socket)])
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app, shutdown_timeout=0.1)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    do(runner.setup())
    do(web.TCPSite(runner, "127.0.0.1", port).start())
    yield f"http://127.0.0.1:{port}", told

    async def end() -> None:
        await runner.cleanup()
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    do(end())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.mark.parametrize("does", ANSWERS)
def test_it_costs_its_rollout(does: str, server: tuple[str, dict[str, str]], tiny_model: Path) -> None:
    url, told = server
    told["do"] = does
    said = ANSWERS[does][1]
    patience = {"step_timeout": 1 if "longer than 1 s" in said else 60}
    (rollout,) = play(tiny_model, given(f"openenv:{url}", patience), lambda turn, text: "x")
    assert said in broken(rollout)


@pytest.mark.parametrize(
    ("spec", "does", "said"),
    [
        ("openenv:{url}", "it is ill", "no server of OpenEnv answers there: .*500"),
        (
            "openenv:{url}",
            "it is another",
            r"no server of OpenEnv answers there: .*/health says \[\], which is no object",
        ),
        ("openenv:http://[::1", "", "no server of OpenEnv answers there"),
        ("nemo-gym:{url}", "", "no server of NeMo-Gym answers there: .*404"),
        ("ors:{url}/game", "", "no answer of an ORS server"),
        ("ors:http://127.0.0.1:99999/game", "", "no answer of an ORS server"),
    ],
)
def test_one_that_is_none_is_said_before_anything_starts(
    spec: str, does: str, said: str, server: tuple[str, dict[str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    if spec.startswith("ors"):
        pytest.importorskip("ors", reason="make setup-environments")
    url, told = server
    told["do"] = does
    args = {"tasks": __file__} if spec.startswith("nemo") else None
    config = given(spec.format(url=url), args, "--hf-checkpoint", str(tiny_model), "--run-dir", str(tmp_path))
    with pytest.raises(UserError, match=said):
        check_inputs(config)
