"""What an environment's step costs beyond the model's answer, beside the same conversation without an environment.

    python benchmarks/environments.py [--json FILE] [--turns 64]

The model is a server in a thread that answers at once. A step is what an episode of --turns answers takes, beginning
and end included, less what the same requests of a bare client take, by the answer: the least of 9 episodes, in
milliseconds. What is not installed is left out. Printed:

bare_ms                one request of the bare client
text_ms, tool_ms       a step of the two loops, whose episode does nothing                             (<= 2)
gem_ms                 of a game of GEM, with the game's own step                                      (<= 2)
openenv_ms             of a server of OpenEnv, with its answer                                         (<= 2)
ors_ms                 of a server of ORS, less the same calls of the package's own client             (<= 2)
ors_call_ms            one of those
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import aiohttp
from aiohttp import web

from miles_lite.environments import load
from miles_lite.environments.episodes import TOTALS, Begun, Step, TextLoop, ToolLoop
from miles_lite.environments.tasks import Tasks

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 9
TASKS = Tasks("idle", lambda split: 1, 0)
CALL = {"id": "c", "type": "function", "function": {"name": "guess", "arguments": '{"number": 0}'}}
TEXT = {"role": "assistant", "content": "\\boxed{99}"}
NUMBER = {"role": "assistant", "content": "0"}
TOOL = {"role": "assistant", "content": "", "tool_calls": [CALL]}
Run = Callable[[str], Awaitable[float]]
"""An episode against a model's URL: seconds, by the answer."""


class Idle:
    """An episode that says the same to whatever it is told."""

    async def begin(self) -> Begun:
        return Begun([{"role": "user", "content": "go"}], [])

    async def step(self, said: str, /) -> Step:
        return Step("on")

    async def call(self, name: str, given: object, /) -> Step:
        return Step("on")

    async def close(self) -> None:
        pass


@contextmanager
def model(message: dict) -> Iterator[str]:
    """The URL of one that answers `message`."""
    body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    loop, started = asyncio.new_event_loop(), threading.Event()
    port, runner = 0, web.AppRunner(web.Application(), access_log=None)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    async def serve() -> None:
        nonlocal port
        runner.app.router.add_post("/chat/completions", answer)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        started.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(20)
    yield f"http://127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


def bare(message: dict, turns: int) -> Run:
    async def run(url: str) -> float:
        messages = [{"role": "user", "content": "go"}]
        began = time.perf_counter()
        async with aiohttp.ClientSession() as client:
            for _ in range(turns):
                async with client.post(f"{url}/chat/completions", json={"messages": messages}) as said:
                    messages.append((await said.json())["choices"][0]["message"])
                messages.append({"role": "user", "content": "on"})
        return (time.perf_counter() - began) / turns

    return run


def played(environment: TextLoop | ToolLoop) -> Run:
    async def run(url: str) -> float:
        metadata = dict(environment.rows("train")[0]["metadata"])
        began = time.perf_counter()
        said = await environment.agent(metadata=metadata, base_url=url, api_key="k", request_kwargs={})
        return (time.perf_counter() - began) / int((said or {})["turns"])

    return run


def called(url: str, turns: int) -> float:
    """Milliseconds of a call of the package's own client."""

    async def run() -> float:
        from ors.client import AsyncORS

        server = AsyncORS(url)
        environment = server.environment("guessing")
        began = time.perf_counter()
        async with environment.session(split="train", index=0) as session:
            for _ in range(turns):
                await session.call_tool("guess", {"number": 0})
        seconds = time.perf_counter() - began
        await environment.client.close()
        return seconds / turns

    return 1000 * min(asyncio.run(run()) for _ in range(EPISODES))


def least_ms(run: Run, message: dict) -> float:
    async def every(url: str) -> list[float]:
        await run(url)
        return [await run(url) for _ in range(EPISODES)]

    with model(message) as url:
        return 1000 * min(asyncio.run(every(url)))


def environments(
    turns: int, stack: ExitStack, numbers: dict[str, float]
) -> Iterator[tuple[str, TextLoop | ToolLoop, float]]:
    """Each with what its package takes without us, which may be noted in `numbers`."""
    sys.path.insert(0, str(ROOT))  # for the servers, which are the tests'
    os.environ["GUESSES"] = "1000000"
    from tests.environments.servers import OPENENV, serving

    limits = {"tasks": TASKS, "max_turns": turns, "total": TOTALS["sum"]}
    yield "text_ms", TextLoop(**limits, begin=lambda task: Idle()), 0.0
    yield "tool_ms", ToolLoop(**limits, begin=lambda task: Idle()), 0.0
    args, folder = json.dumps({"max_turns": turns}), Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if find_spec("gem"):
        yield "gem_ms", load("gem:game:GuessTheNumber-v0-easy", args, seed=0), 0.0
    if find_spec("ors"):
        url = stack.enter_context(serving("ors", folder / "ors"))
        numbers["ors_call_ms"] = called(url, turns)
        yield "ors_ms", load(f"ors:{url}/guessing", args, seed=0), numbers["ors_call_ms"]
    if OPENENV.exists():
        url = stack.enter_context(serving("openenv", folder / "openenv"))
        yield "openenv_ms", load(f"openenv:{url}", args, seed=0), 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--turns", type=int, default=64)
    options = parser.parse_args()
    numbers: dict[str, float] = {}
    with ExitStack() as stack:
        for name, environment, own in environments(options.turns, stack, numbers):
            message = TOOL if isinstance(environment, ToolLoop) else NUMBER if name == "openenv_ms" else TEXT
            beside = least_ms(bare(message, options.turns), message)
            numbers.setdefault("bare_ms", beside)
            numbers[name] = least_ms(played(environment), message) - beside - own
    for name, value in numbers.items():
        print(f"{name:12s} {value:.3g}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
