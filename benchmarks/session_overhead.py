"""What a session server costs per turn, beside the same /generate bodies sent straight to the engine.

    python benchmarks/session_overhead.py [--json FILE] [--quick]

`miles-lite session` has core 0 for itself; a canned engine that answers at once shares core 1 with the load generator.
A turn is 100 appended text tokens and 400 sampled ids with logprobs (Qwen3's vocabulary and template). Printed, without
a journal unless it is named:

intercept_ms, slope_us_per_1k    overhead per turn over the history's length, to 130k tokens: median over sessions of
                                 (turn - direct), then a least-squares line                                 (<= 1.0, 20)
..._500, ..._experts             the same with 500 appended tokens, and with routed experts of 2 layers x 2
rps_256, p99_ms_256              256 concurrent sessions x 8 turns                                    (>= 1,000, <= 500)
cpu_ms_per_request               processor time of the session server in that
direct_rps_256                   the same bodies straight to the engine
journal_cost                     share of rps_256 that journaling every turn costs                             (<= 0.15)
bytes_per_token, kib_per_session resident memory of sessions of 32 to 64 turns, and of sessions of one turn  (<= 16, 20)
rss_after_delete                 resident memory two seconds after all was deleted, over that before        (<= 1.05)
collect_ms                       collecting a session of 128 turns and 65k tokens                               (<= 20)
others_delay_ms_16mb, ..._60mb   what a request of so many bytes delays others' turns                       (<= 50, 200)
restart_seconds                  from SIGKILL of the worker to the next turn of a session that it held           (<= 5)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import uvloop
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the model folder, which is the tests'
SAMPLED = 400
JSON = b"Content-Type: application/json\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--quick", action="store_true", help="a quarter of the work, to see that it runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        numbers = _measure(Path(folder), quick=args.quick)
    for name, value in numbers.items():
        print(f"{name:24s} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2))


def _measure(folder: Path, *, quick: bool) -> dict[str, float]:
    os.sched_setaffinity(0, {1})
    model = _model(folder / "model")
    words = Words(model)
    (folder / "ids.json").write_text(json.dumps([*words.ids(SAMPLED - 1), words.stop]))
    tokens, rounds, sessions = (30_000, 1, 64) if quick else (130_000, 3, 256)
    numbers: dict[str, float] = {}
    with _engine(folder) as engine, _sessions(model, engine) as server:
        for name, appended in (("", 100), ("_500", 500)):
            numbers |= _line(name, _lengths(server.port, engine.port, words, tokens // (appended + SAMPLED), appended))
    with _engine(folder) as engine, _sessions(model, engine) as server:
        plain = uvloop.run(_throughput(server, words, rounds=rounds))
        numbers |= plain | {"direct_rps_256": uvloop.run(_direct(engine.port))}
    with _engine(folder) as engine, _sessions(model, engine, journal=folder / "journal") as server:
        journaled = uvloop.run(_throughput(server, words, rounds=rounds))
        numbers["journal_cost"] = 1 - journaled["rps_256"] / plain["rps_256"]
        numbers["restart_seconds"] = uvloop.run(_restart(server, words))
    with _engine(folder) as engine, _sessions(model, engine) as server:
        numbers |= uvloop.run(_memory(server, words, sessions=sessions))
        numbers["collect_ms"] = uvloop.run(_collect(server.port, words))
    with _engine(folder) as engine, _sessions(model, engine) as server:
        for megabytes in (16, 60):
            numbers[f"others_delay_ms_{megabytes}mb"] = uvloop.run(_others_delay(server.port, words, megabytes))
    with _engine(folder, "--experts", "2", "2") as engine, _sessions(model, engine, experts=True) as server:
        numbers |= _line("_experts", _lengths(server.port, engine.port, words, tokens // 4 // 500, 100))
    return numbers


def _line(name: str, measuring: Coroutine[Any, Any, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    history, overhead = asyncio.run(measuring)
    slope, intercept = np.polyfit(history / 1000, overhead * 1000, 1)
    return {f"intercept_ms{name}": float(intercept), f"slope_us_per_1k{name}": float(slope * 1000)}


async def _lengths(server: int, engine: int, words: Words, turns: int, appended: int) -> tuple[np.ndarray, np.ndarray]:
    """(history in tokens, overhead in seconds) of each turn; the median of five sessions."""
    overheads: list[list[float]] = []
    lengths: list[int] = []
    for _ in range(5):
        agent = Agent(await Connection.open(server), words, appended=appended)
        direct = await Connection.open(engine)
        await agent.open()
        seconds, lengths = [], []
        for _ in range(turns):
            took, usage = await agent.turn()
            body = await direct.request(b"GET", "/last")
            floor = min([await _timed(direct.request(b"POST", "/generate", body)) for _ in range(3)])
            seconds.append(took - floor)
            lengths.append(usage["prompt_tokens"])
        await agent.close()
        overheads.append(seconds)
    return np.asarray(lengths[1:]), np.median(np.asarray(overheads), axis=0)[1:]


async def _throughput(server: Process, words: Words, *, rounds: int) -> dict[str, float]:
    """256 sessions at once, 8 turns each: requests per second and the 99th percentile of a turn."""
    rates, tails, cpu = [], [], []
    for _ in range(rounds):
        agents = [Agent(await Connection.open(server.port), words) for _ in range(256)]
        await asyncio.gather(*(agent.open() for agent in agents))
        used, began = server.cpu(), time.perf_counter()
        times = await asyncio.gather(*(agent.talk(8) for agent in agents))
        rates.append(256 * 8 / (time.perf_counter() - began))
        cpu.append((server.cpu() - used) / (256 * 8) * 1000)
        tails.append(float(np.percentile(np.concatenate(times), 99)) * 1000)
        await asyncio.gather(*(agent.close() for agent in agents))
    medians = map(statistics.median, (rates, tails, cpu))
    return dict(zip(("rps_256", "p99_ms_256", "cpu_ms_per_request"), medians, strict=True))


async def _direct(engine: int) -> float:
    """Requests per second of the body of the engine's last request, on 256 connections."""
    body = await (await Connection.open(engine)).request(b"GET", "/last")
    direct = [await Connection.open(engine) for _ in range(256)]
    began = time.perf_counter()
    await asyncio.gather(*(_repeat(each, body, 8) for each in direct))
    return 256 * 8 / (time.perf_counter() - began)


async def _restart(server: Process, words: Words) -> float:
    """Seconds from the worker's SIGKILL to the next turn of a session that it held."""
    agent = Agent(await Connection.open(server.port), words)
    await agent.open()
    await agent.talk(2)
    began = time.perf_counter()
    server.worker.kill()
    while time.perf_counter() - began < 60:
        agent.connection = await Connection.open(server.port)
        with suppress(RuntimeError, OSError, asyncio.IncompleteReadError):
            await agent.again()
            return time.perf_counter() - began
        await asyncio.sleep(0.02)
    raise RuntimeError("the killed session server was not back within 60 s")


async def _memory(server: Process, words: Words, *, sessions: int) -> dict[str, float]:
    """Resident bytes per token and per session, measured on top of sessions that use up what start-up left free."""

    async def grown(agents: list[Agent], turns: int) -> tuple[int, int]:
        """(tokens, bytes) that further turns of the agents add."""
        tokens, memory = sum(agent.tokens for agent in agents), server.memory()
        for agent in agents:
            await agent.talk(turns)
        return sum(agent.tokens for agent in agents) - tokens, server.memory() - memory

    async def opened(count: int) -> list[Agent]:
        agents = [Agent(await Connection.open(server.port), words) for _ in range(count)]
        for agent in agents:
            await agent.open()
        return agents

    before, many = server.memory(), await opened(sessions)
    await grown(many, 32)
    tokens, memory = await grown(many, 32)
    per_token, held = memory / tokens, server.memory()
    new = await opened(4 * sessions)
    tokens, _ = await grown(new, 1)
    per_session = (server.memory() - held - tokens * per_token) / len(new)
    for agent in (*many, *new):
        await agent.close()
    await asyncio.sleep(2)
    return {
        "bytes_per_token": per_token,
        "kib_per_session": per_session / 1024,
        "rss_after_delete": server.memory() / before,
    }


async def _collect(server: int, words: Words) -> float:
    """Milliseconds to collect a session of 128 turns; the median of five."""
    agent = Agent(await Connection.open(server), words, appended=108)
    await agent.open()
    await agent.talk(128)
    path = f"/sessions/{agent.session_id}/samples"
    return statistics.median([await _timed(agent.connection.request(b"POST", path, b"{}")) for _ in range(5)]) * 1000


async def _others_delay(server: int, words: Words, megabytes: int) -> float:
    """Milliseconds that the slowest turn of another session takes longer while a large request is there than before.

    The largest of requests that are one message, many messages, tools, and text that the context might just hold.
    """
    agent = Agent(await Connection.open(server), words, appended=1)
    await agent.open()
    await agent.talk(8)
    usual = float(np.median(await agent.talk(64)))
    slowest = 0.0
    for body in _large(megabytes * 10**6):
        session = Agent(await Connection.open(server), words)
        await session.open()
        path = f"/sessions/{session.session_id}/v1/chat/completions"
        sending = asyncio.create_task(asyncio.to_thread(_send, server, path, body))
        while not sending.done():
            slowest = max(slowest, (await agent.turn())[0] - usual)
        await sending
    return slowest * 1000


def _large(size: int) -> Iterator[bytes]:
    """Requests of so many bytes, and one that is within the bounds."""
    text, message = "a few words, ", {"role": "user", "content": "hello there " * 20}
    tool = {"type": "function", "function": {"name": "f", "description": "does it", "parameters": {"type": "object"}}}
    ask: list[Any] = [{"role": "user", "content": "go"}]
    yield orjson.dumps({"messages": [{"role": "user", "content": text * (size // len(text))}]})
    yield orjson.dumps({"messages": [message] * (size // len(orjson.dumps(message)))})
    yield orjson.dumps({"messages": ask, "tools": [tool] * (size // len(orjson.dumps(tool)))})
    yield orjson.dumps({"messages": [{"role": "user", "content": text * (min(size, 2**22) // len(text))}]})


def _send(port: int, path: str, body: bytes) -> None:
    """From a thread, so that what is measured does not wait for it. Whatever the server answers is fine."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)))
        connection.sendall(body)
        connection.recv(4096)


async def _timed(call: Any) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def _repeat(connection: Connection, body: bytes, times: int) -> None:
    for _ in range(times):
        await connection.request(b"POST", "/generate", body)


class Words:
    """Text of a known number of tokens in one vocabulary."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._random = random.Random(0)
        self.stop = self._tokenizer.encode("<|im_end|>").ids[0]
        pieces = (
            "al an ar as at be ca co de el en er es ex in is it le me ne on or pa re ro se st ta te ti un ve".split()
        )
        words = (f" {first}{second}" for first in pieces for second in ("", *pieces))
        self._words = [word for word in words if len(self._tokenizer.encode(word).ids) == 1]

    def text(self, tokens: int) -> str:
        return "".join(self._random.choices(self._words, k=tokens))

    def ids(self, tokens: int) -> list[int]:
        return list(self._tokenizer.encode(self.text(tokens)).ids)


class Connection:
    """One keep-alive HTTP/1.1 connection, as little of it as measuring needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**22))

    def close(self) -> None:
        self._writer.close()

    async def request(self, method: bytes, path: str, body: bytes = b"") -> bytes:
        head = b"%s %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (method, path.encode(), JSON, len(body))
        self._writer.write(head + body)
        answer = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 60)
        status, length = int(answer[9:12]), 0
        for line in answer.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        content = await self._reader.readexactly(length)
        if status >= 300:
            raise RuntimeError(f"{method.decode()} {path}: {status} {content[:300]!r}")
        return content


class Agent:
    """A harness with one conversation: it sends all of it back, and `appended` more tokens."""

    def __init__(self, connection: Connection, words: Words, *, appended: int = 100) -> None:
        self.connection, self._words, self._appended = connection, words, appended
        self._messages: list[Any] = []
        self.session_id = ""
        self.tokens = 0

    async def open(self) -> None:
        made = orjson.loads(await self.connection.request(b"POST", "/sessions", b"{}"))
        self.session_id = made["session_id"]

    async def turn(self) -> tuple[float, dict[str, int]]:
        """(seconds, usage) of one turn."""
        content = self._words.text(self._appended)
        self._messages.append(orjson.Fragment(orjson.dumps({"role": "user", "content": content})))
        return await self.again()

    async def again(self) -> tuple[float, dict[str, int]]:
        """(seconds, usage) of the turn that the conversation waits for."""
        body = orjson.dumps({"model": "m", "messages": self._messages})
        path = f"/sessions/{self.session_id}/v1/chat/completions"
        began = time.perf_counter()
        answer = await self.connection.request(b"POST", path, body)
        took = time.perf_counter() - began
        answer = orjson.loads(answer)
        self._messages.append(orjson.Fragment(orjson.dumps(answer["choices"][0]["message"])))
        self.tokens = answer["usage"]["total_tokens"]
        return took, answer["usage"]

    async def talk(self, turns: int) -> np.ndarray:
        return np.asarray([(await self.turn())[0] for _ in range(turns)])

    async def close(self) -> None:
        await self.connection.request(b"DELETE", f"/sessions/{self.session_id}")
        self.connection.close()


class Process:
    """A process of this benchmark; `worker` is the one that does the work."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        own = psutil.Process(process.pid)
        self.worker = next(iter(own.children()), own)

    def cpu(self) -> float:
        times = self.worker.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        return int(self.worker.memory_info().rss)


def _engine(folder: Path, *arguments: str) -> AbstractContextManager[Process]:
    script = str(ROOT / "benchmarks" / "servers" / "canned_engine.py")
    return _process(script, "--ids", str(folder / "ids.json"), *arguments, core=1)


def _sessions(
    model: Path, engine: Process, *, journal: Path | None = None, experts: bool = False
) -> AbstractContextManager[Process]:
    flags = ["--hf-checkpoint", str(model), "--router-url", f"http://127.0.0.1:{engine.port}"]
    flags += ["--rollout-max-context-len", "262144", "--tito-allowed-append-roles", "tool", "user"]
    flags += ["--session-journal-dir", str(journal)] if journal else ["--no-session-journal"]
    flags += ["--sglang-enable-return-routed-experts"] if experts else []
    return _process("-m", "miles_lite", "session", *flags, core=0)


@contextmanager
def _process(*arguments: str, core: int) -> Iterator[Process]:
    """Python with these arguments; the port is the last number of its first line."""
    command = ["taskset", "-c", str(core), sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        ports = re.findall(r":?(\d+)(?: |$)", process.stdout.readline())
        if not ports:
            raise RuntimeError(f"{' '.join(arguments)} did not start: exit code {process.wait(10)}")
        yield Process(process, int(ports[0]))
    finally:
        process.terminate()
        process.wait(20)


def _model(folder: Path) -> Path:
    from tests.tito.material import save_model

    experts = {"num_hidden_layers": 2, "num_experts": 128, "num_experts_per_tok": 2}
    return save_model(folder, "trl/qwen3", eos="<|im_end|>", model_type="qwen3_moe", **experts)


if __name__ == "__main__":
    main()
