"""What a session server costs per turn, beside the same /generate bodies sent straight to the engine.

    python benchmarks/session_overhead.py [--json FILE] [--quick]

A canned engine answers at once and shares core 1 with the load generator; the session server has core 0 for itself. A
turn is 100 appended text tokens and 400 sampled ids with logprobs (Qwen3's vocabulary and template). Printed:

intercept_ms, slope_us_per_1k    overhead per turn over the history's length, to 130k tokens: median over sessions of
                                 (turn - direct), then a least-squares line; also with 500 appended         (<= 1.0, 20)
rps_256, p99_ms_256              256 concurrent sessions x 8 turns                                    (>= 1,000, <= 500)
direct_rps_256                   the same bodies straight to the engine
bytes_per_token, kib_per_session resident memory: a line over sessions of 1 turn and of 16                  (<= 16, 20)
rss_after_delete                 resident memory when all is deleted, over that before                       (<= 1.05)
journal_cost                     share of rps_256 that the journal takes                                      (<= 0.15)
restart_seconds                  from killing the worker process to the next answer                              (<= 5)
collect_ms                       collecting a session of 128 turns and 65k tokens                               (<= 20)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    ids = [*words.ids(SAMPLED - 1), words.stop]
    (folder / "ids.json").write_text(json.dumps(ids))
    numbers: dict[str, float] = {}
    with ExitStack() as stack:
        engine = stack.enter_context(_process("canned_engine.py", "--ids", str(folder / "ids.json")))
        url = f"http://127.0.0.1:{engine.port}"
        with _process("session_server.py", "--model", str(model), "--router-url", url, core=0) as server:
            for name, appended in (("", 100), ("_500", 500)):
                turns = (130_000 if not quick else 30_000) // (appended + SAMPLED)
                history, overhead = asyncio.run(_lengths(server.port, engine.port, words, turns, appended))
                slope, intercept = np.polyfit(history / 1000, overhead * 1000, 1)
                numbers[f"intercept_ms{name}"] = float(intercept)
                numbers[f"slope_us_per_1k{name}"] = float(slope * 1000)
            numbers |= uvloop.run(_throughput(server, engine.port, words, rounds=1 if quick else 3))
        with _process("session_server.py", "--model", str(model), "--router-url", url, core=0) as server:
            numbers |= uvloop.run(_memory(server, words, sessions=64 if quick else 256))
            numbers["collect_ms"] = uvloop.run(_collect(server.port, words))
        journal = ("--run-dir", str(folder / "run"))
        with _process("session_server.py", "--model", str(model), "--router-url", url, *journal, core=0) as server:
            journaled = uvloop.run(_throughput(server, engine.port, words, rounds=1 if quick else 3))
        numbers["journal_cost"] = 1 - journaled["rps_256"] / numbers["rps_256"]
        numbers["restart_seconds"] = asyncio.run(_restart(model, url, folder / "supervised"))
    return numbers


async def _restart(model: Path, router_url: str, run_dir: Path) -> float:
    """Seconds from killing a server's worker process to the next 200; the median of three."""
    from benchmarks.session_server import session_spec
    from miles_lite.session.supervisor import Supervisor

    supervisor, seconds = Supervisor(session_spec(str(model), router_url, str(run_dir))), []
    port = int((await supervisor.start()).rpartition(":")[2])
    try:
        for _ in range(3):
            assert supervisor.worker_pid is not None
            os.kill(supervisor.worker_pid, signal.SIGKILL)
            began = time.perf_counter()
            while not await _healthy(port):
                await asyncio.sleep(0.01)
            seconds.append(time.perf_counter() - began)
    finally:
        await supervisor.stop()
    return statistics.median(seconds)


async def _healthy(port: int) -> bool:
    try:
        await (await Connection.open(port)).request(b"GET", "/health")
    except (OSError, RuntimeError, asyncio.IncompleteReadError):
        return False
    return True


async def _lengths(server: int, engine: int, words: Words, turns: int, appended: int) -> tuple[np.ndarray, np.ndarray]:
    """(history in tokens, overhead in seconds) of each turn; the median of five sessions."""
    overheads, lengths = [], []
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


async def _throughput(server: Server, engine: int, words: Words, *, rounds: int) -> dict[str, float]:
    """256 sessions at once, 8 turns each: requests per second and the 99th percentile of a turn."""
    rates, tails, cpu = [], [], []
    bodies = b""
    for _ in range(rounds):
        agents = [Agent(await Connection.open(server.port), words) for _ in range(256)]
        await asyncio.gather(*(agent.open() for agent in agents))
        used = server.cpu()
        began = time.perf_counter()
        times = await asyncio.gather(*(agent.talk(8) for agent in agents))
        took = time.perf_counter() - began
        rates.append(256 * 8 / took)
        cpu.append((server.cpu() - used) / (256 * 8) * 1000)
        tails.append(float(np.percentile(np.concatenate(times), 99)) * 1000)
        bodies = await (await Connection.open(engine)).request(b"GET", "/last")
        await asyncio.gather(*(agent.close() for agent in agents))
    direct = [await Connection.open(engine) for _ in range(256)]
    began = time.perf_counter()
    await asyncio.gather(*(_repeat(each, bodies, 8) for each in direct))
    floor = 256 * 8 / (time.perf_counter() - began)
    return {
        "rps_256": statistics.median(rates),
        "p99_ms_256": statistics.median(tails),
        "cpu_ms_per_request": statistics.median(cpu),
        "direct_rps_256": floor,
    }


async def _memory(server: Server, words: Words, *, sessions: int) -> dict[str, float]:
    """Resident bytes over sessions of 1 turn and of 16; what is left when they are deleted."""
    warm = [Agent(await Connection.open(server.port), words) for _ in range(4)]
    for agent in warm:
        await agent.open()
        await agent.talk(16)
        await agent.close()
    before, points = server.memory(), []
    short = [Agent(await Connection.open(server.port), words) for _ in range(sessions)]
    for turns in (1, 15):
        for agent in short:
            if turns == 1:
                await agent.open()
            await agent.talk(turns)
        tokens = sum(agent.tokens for agent in short)
        points.append((tokens / sessions, (server.memory() - before) / sessions))
    (few, small), (many, large) = points
    per_token = (large - small) / (many - few)
    for agent in short:
        await agent.close()
    return {
        "bytes_per_token": per_token,
        "kib_per_session": (small - per_token * few) / 1024,
        "rss_after_delete": server.memory() / before,
    }


async def _collect(server: int, words: Words) -> float:
    """Milliseconds to collect a session of 128 turns; the median of five."""
    agent = Agent(await Connection.open(server), words, appended=108)
    await agent.open()
    await agent.talk(128)
    path = f"/sessions/{agent.session_id}/samples"
    return statistics.median([await _timed(agent.connection.request(b"POST", path, b"{}")) for _ in range(5)]) * 1000


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
        self.stop = int(self._tokenizer.token_to_id("<|im_end|>"))
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


class Server:
    """A process of this benchmark that printed its port."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self._process = psutil.Process(process.pid)

    def cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        return int(self._process.memory_info().rss)


@contextmanager
def _process(script: str, *arguments: str, core: int = 1) -> Iterator[Server]:
    command = ["taskset", "-c", str(core), sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{script} did not start: exit code {process.wait(10)}")
        yield Server(process, int(port))
    finally:
        process.terminate()
        process.wait(10)


def _model(folder: Path) -> Path:
    from tests.tito.material import save_model

    return save_model(folder, "trl/qwen3", eos="<|im_end|>", model_type="qwen3")


if __name__ == "__main__":
    main()
