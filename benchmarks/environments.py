"""What an environment's step costs beyond the model's answer, beside the same work without an environment.

    python benchmarks/environments.py [--json FILE] [--turns 64]

The model is a server in a thread that answers at once. A step is what an episode of --turns answers takes, beginning
and end included, less what the same requests of a bare client take, by the answer: the least of 15 episodes, in
milliseconds; the two take turns, and which is first alternates. Where the environment has a client, a server, a sandbox
or a process of its own, the same work without the adapter is timed beside it (`..._own_ms`) and taken off, with its
requests; its median is so much more (`..._spread_ms`). A server of verifiers takes 55 ms of processor time and more for
an episode that does nothing, and one of NeMo-Gym three processes: what they send is recorded once, and sent again at
once; nemo_gym_server_ms is beside the package's own server, whose time is nemo_gym_server_own_ms. `..._cpu_ms` is the
same of processor time, this process's, whose model is in it, and that of programs that it started and that have ended:
where others use the machine, it says more. What is not installed is left out. Printed:

bare_ms                   one request of the bare client
text_ms, tool_ms          a step of the two loops, whose episode does nothing                          (<= 2)
harness_ms                of the loop of whole harnesses, whose harness is the bare client             (<= 2)
gem_ms, textarena_ms      of a game, with the game's own step                                          (<= 2)
reasoning_gym_ms          an episode, of one answer, with its scoring                                  (<= 2)
openenv_ms                of a server of OpenEnv, with its answer                                      (<= 2)
ors_ms                    of a server of ORS, beyond the package's own client                          (<= 2)
program_ms                of a program that asks --turns times, beyond the program                     (<= 2)
harbor_ms                 a command in bubblewrap, tests included, beyond the same in a sandbox        (<= 2)
nemo_gym_ms               an answer of an agent server of NeMo-Gym, beyond the same POST /run          (<= 2)
nemo_gym_server_ms        the same where the package's server answers, with what its time wanders by
verifiers_ms              an answer, of three, of an environment server, beyond the same frames by ZMQ (<= 2)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from aiohttp import web

from miles_lite.environments import load
from miles_lite.environments.episodes import TOTALS, Begun, Step, TextLoop, ToolLoop
from miles_lite.environments.harness import Ended, bounded
from miles_lite.environments.tasks import Tasks
from miles_lite.sandboxes import pool

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 15
COMMANDS = 16
"""Of a task of a terminal at most, since each starts a process."""
TASKS = Tasks("idle", lambda split: 1, 0)
CALL = {"id": "c", "type": "function", "function": {"name": "guess", "arguments": '{"number": 0}'}}
TEXT = {"role": "assistant", "content": "\\boxed{99}"}
NUMBER = {"role": "assistant", "content": "0"}
GUESS = {"role": "assistant", "content": "[1]"}
COMMAND = {"id": "c", "type": "function", "function": {"name": "bash", "arguments": '{"command": "true"}'}}
BASH = {"role": "assistant", "content": "", "tool_calls": [COMMAND]}
TOOL = {"role": "assistant", "content": "", "tool_calls": [CALL]}
Run = Callable[[str], Awaitable[float]]
"""An episode against a model's URL: seconds, by the answer."""


@dataclass(frozen=True)
class Timed:
    """`environment`, whose model says `message` and is asked `turns` times in an episode, or as often as it says.
    `own`: the same without the adapter, the requests included."""

    name: str
    environment: Any
    message: dict
    turns: int
    own: Run | None = None


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
    """The URL of one that says `message`."""
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    head = {"id": "c", "object": "chat.completion", "created": 0, "model": "policy"}
    content = [{"type": "output_text", "text": message["content"], "annotations": []}]
    output = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": content}
    spent: dict[str, Any] = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    spent |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    response = {"id": "r", "object": "response", "created_at": 0, "model": "policy", "output": [output]}
    response |= {"parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "usage": spent}
    bodies = {"/chat/completions": head | {"choices": [choice], "usage": usage}, "/responses": response}
    with answering({path: json.dumps(body).encode() for path, body in bodies.items()}) as url:
        yield url


@contextmanager
def answering(said: Mapping[str, bytes]) -> Iterator[str]:
    """The URL of a server in a thread that answers each path with its JSON, at once."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    port, runner = 0, web.AppRunner(web.Application(), access_log=None)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=said[request.path], content_type="application/json")

    async def serve() -> None:
        nonlocal port
        for path in said:
            runner.app.router.add_route("*", path, answer)
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


def played(timed: Timed) -> Run:
    row = timed.environment.rows("train")[0]

    async def run(url: str) -> float:
        asked = {"metadata": dict(row["metadata"]), "prompt": row["prompt"], "base_url": url}
        began = time.perf_counter()
        said = await timed.environment.agent(**asked, api_key="k", request_kwargs={})
        return (time.perf_counter() - began) / int(said.get("turns", timed.turns))

    return run


def idle(turns: int) -> Iterator[Timed]:
    limits: Any = {"tasks": TASKS, "max_turns": turns, "total": TOTALS["sum"]}
    yield Timed("text_ms", TextLoop(**limits, begin=lambda task: Idle()), TEXT, turns)
    yield Timed("tool_ms", ToolLoop(**limits, begin=lambda task: Idle()), TOOL, turns)

    async def harness(task: object, asked: Any) -> Ended:
        return Ended(await bare(TEXT, turns)(asked.base_url))

    yield Timed("harness_ms", bounded(harness, {"at_once": 16}, tasks=TASKS), TEXT, turns)


def packages(turns: int) -> Iterator[Timed]:
    args = json.dumps({"max_turns": turns})
    if find_spec("gem"):
        yield Timed("gem_ms", load("gem:game:GuessTheNumber-v0-easy", args, seed=0), TEXT, turns)
    if find_spec("textarena"):
        yield Timed("textarena_ms", load("textarena:GuessTheNumber-v0", None, seed=0), GUESS, 3)
    if find_spec("reasoning_gym"):
        yield Timed("reasoning_gym_ms", load("reasoning-gym:chain_sum", None, seed=0), TEXT, 1)


def servers(turns: int, stack: ExitStack, folder: Path) -> Iterator[Timed]:
    sys.path.insert(0, str(ROOT))  # for the servers, which are the tests'
    os.environ["GUESSES"] = "1000000"
    from tests.environments.servers import NEMO_GYM, OPENENV, VERIFIERS, serving

    args = json.dumps({"max_turns": turns})
    if find_spec("ors"):
        url = stack.enter_context(serving("ors", folder / "ors"))
        yield Timed("ors_ms", load(f"ors:{url}/guessing", args, seed=0), TOOL, turns, ors_own(url, turns))
    if OPENENV.exists():
        url = stack.enter_context(serving("openenv", folder / "openenv"))
        yield Timed("openenv_ms", load(f"openenv:{url}", args, seed=0), NUMBER, turns)
    if NEMO_GYM.exists():
        url = stack.enter_context(serving("nemo-gym", folder / "nemo-gym"))
        (rows,) = NEMO_GYM.parents[1].glob("lib/*/site-packages/resources_servers/mcqa/data/example.jsonl")
        told = json.dumps({"tasks": str(rows)})
        row = json.loads(rows.read_text().splitlines()[0])
        own = load(f"nemo-gym:{url}", told, seed=0)
        yield Timed("nemo_gym_server_ms", own, TEXT, 1, nemo_gym_own(url, row))
        again = stack.enter_context(answering(asyncio.run(nemo_gym_answers(url, row))))
        yield Timed("nemo_gym_ms", load(f"nemo-gym:{again}", told, seed=0), TEXT, 1, nemo_gym_own(again, row))
    if VERIFIERS.exists():
        url = stack.enter_context(serving("verifiers", folder / "verifiers")).replace("http:", "tcp:")
        row, file = {"prompt": "guess", "number": 1}, folder / "tasks.jsonl"
        file.write_text(json.dumps(row) + "\n")
        again = stack.enter_context(sending_again(url, row))
        made = load(f"verifiers:{again}", json.dumps({"tasks": str(file)}), seed=0)
        yield Timed("verifiers_ms", made, TEXT, 3, verifiers_own(again, row))


def ors_own(url: str, turns: int) -> Run:
    """The package's own client; the requests are a bare client's."""

    async def run(model: str) -> float:
        from ors.client import AsyncORS

        server = AsyncORS(url)
        environment = server.environment("guessing")
        began = time.perf_counter()
        session: Any
        async with environment.session(split="train", index=0) as session:
            await session.get_prompt()
            await session.list_tools()
            for _ in range(turns):
                await session.call_tool("guess", {"number": 0})
        seconds = time.perf_counter() - began
        await environment.client.close()
        return seconds / turns + await bare(TOOL, turns)(model)

    return run


def nemo_gym_own(url: str, row: dict) -> Run:
    async def run(model: str) -> float:
        began = time.perf_counter()
        body = {**row, "policy_base_url": model, "policy_api_key": "k"}
        async with aiohttp.ClientSession() as client, client.post(f"{url}/run", json=body) as answer:
            assert (await answer.json())["response"]
        return time.perf_counter() - began

    return run


async def nemo_gym_answers(url: str, row: dict) -> dict[str, bytes]:
    """What an agent server of NeMo-Gym says of itself, and of a row, by the path."""
    with model(TEXT) as asked:
        body = {**row, "policy_base_url": asked, "policy_api_key": "k"}
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{url}/openapi.json") as told,
            client.post(f"{url}/run", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return {"/openapi.json": await told.read(), "/run": await answer.read()}


async def frames(url: str, row: dict, model: str) -> list[list[bytes]]:
    """What an environment server of verifiers sends for an episode."""
    import msgpack
    import zmq.asyncio

    client = {"type": "eval", "base_url": model, "api_key_var": "MILES_LITE_NO_KEY"}
    asked = {"task_data": row, "client": client, "model": "policy", "sampling": {}}
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.connect(url)
    await socket.send_multipart([b"1", b"run", msgpack.packb(asked)])
    sent: list[list[bytes]] = []
    while not sent or sent[-1][0] != b"reply":
        sent.append((await socket.recv_multipart())[1:])
    socket.close()
    return sent


@contextmanager
def sending_again(url: str, row: dict) -> Iterator[str]:
    """The URL of a server that sends for each episode what the one at `url` sent for one."""
    import msgpack
    import zmq

    with model(TEXT) as asked:
        sent = asyncio.run(frames(url, row, asked))
    assert msgpack.unpackb(sent[-1][1])["success"], sent[-1]
    socket: Any = zmq.Context.instance().socket(zmq.ROUTER)
    port, over = socket.bind_to_random_port("tcp://127.0.0.1"), threading.Event()

    def answer() -> None:
        while not over.is_set():
            if socket.poll(100):
                client, request, method, _ = socket.recv_multipart()
                for kind, data in sent if method == b"run" else [[b"reply", msgpack.packb({"success": True})]]:
                    socket.send_multipart([client, request, kind, data])
        socket.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"tcp://127.0.0.1:{port}"
    over.set()
    thread.join(20)


def verifiers_own(url: str, row: dict) -> Run:
    async def run(model: str) -> float:
        began = time.perf_counter()
        await frames(url, row, model)
        return (time.perf_counter() - began) / 3

    return run


PROGRAM = """
import json, os, urllib.request

headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
messages = [{"role": "user", "content": "go"}]
for _ in range(TURNS):
    body = json.dumps({"messages": messages}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    messages.append(json.load(urllib.request.urlopen(request))["choices"][0]["message"])
    messages.append({"role": "user", "content": "on"})
open("reward.txt", "w").write("1")
"""


def processes(turns: int, folder: Path) -> Iterator[Timed]:
    """A program beside itself, and a task of a terminal beside its commands and tests in a sandbox."""
    file = folder / "agent.py"
    file.write_text(PROGRAM.replace("TURNS", str(turns)))
    argv = [sys.executable, str(file)]

    async def program(url: str) -> float:
        began = time.perf_counter()
        environment = os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "k"}
        await asyncio.to_thread(subprocess.run, argv, check=True, cwd=folder, env=environment)
        return (time.perf_counter() - began) / turns

    yield Timed("program_ms", load(f"program:{' '.join(argv)}", None, seed=0), TEXT, turns, program)
    task = folder / "task"
    (task / "tests").mkdir(parents=True)
    (task / "environment").mkdir()
    (task / "task.toml").write_text("")
    (task / "instruction.md").write_text("go")
    (task / "tests" / "test.sh").write_text("echo 1 > /logs/verifier/reward.txt")

    turns = min(turns, COMMANDS)

    def commands() -> float:
        began = time.perf_counter()
        with pool("bwrap").open(workdir="/app") as lease:
            for _ in range(turns):
                lease.sandbox.run("true", seconds=60)
            lease.sandbox.run("mkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt", seconds=60)
        return (time.perf_counter() - began) / turns

    async def sandbox(url: str) -> float:
        return await asyncio.to_thread(commands) + await bare(BASH, turns)(url)

    args = json.dumps({"sandbox": "bwrap", "max_turns": turns})
    yield Timed("harbor_ms", load(f"harbor:{task}", args, seed=0), BASH, turns, sandbox)


def processor() -> float:
    """Seconds of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measured(timed: Timed) -> dict[str, float]:
    """Its numbers. What it is compared with and it take turns, so that what else the machine does meets both."""
    runs = (timed.own or bare(timed.message, timed.turns), played(timed))
    wall: tuple[list[float], ...] = ([], [])
    spent: tuple[list[float], ...] = ([], [])

    async def every(url: str) -> None:
        for episode in range(EPISODES + 1):
            for at in (0, 1) if episode % 2 else (1, 0):
                began = processor()
                wall[at].append(1000 * await runs[at](url))
                spent[at].append(1000 * (processor() - began) / timed.turns)

    with model(timed.message) as url:
        asyncio.run(every(url))
    (beside, took), (beside_spent, took_spent) = ([each[1:] for each in kind] for kind in (wall, spent))
    name = timed.name.removesuffix("_ms")
    numbers = {f"{name}_own_ms" if timed.own else "bare_ms": min(beside)}
    if timed.own:
        numbers[f"{name}_spread_ms"] = median(beside) - min(beside)
    return numbers | {f"{name}_ms": min(took) - min(beside), f"{name}_cpu_ms": min(took_spent) - min(beside_spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--turns", type=int, default=64)
    options = parser.parse_args()
    numbers: dict[str, float] = {}
    with ExitStack() as stack:
        folder, turns = Path(stack.enter_context(tempfile.TemporaryDirectory())), options.turns
        kinds = (idle(turns), packages(turns), servers(turns, stack, folder), processes(turns, folder))
        for timed in (each for kind in kinds for each in kind):
            numbers |= {name: value for name, value in measured(timed).items() if name not in numbers}
    for name, value in numbers.items():
        print(f"{name:20s} {value:.3g}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
