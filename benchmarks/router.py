"""What the router costs: requests per second and latency, beside smg, a trivial aiohttp pass-through and no proxy.

    python benchmarks/router.py [--json FILE] [--seconds 2] [--rounds 3]

Needs wrk (the load) and gcc (the workers: servers/fake_worker.c, which answers at once). Everything is on loopback and
shares this machine's cores, one system under test at a time, each a single process; of several rounds the best counts.
Bodies are of the same size both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
REPO = HERE.parents[1]
SMALL, LARGE = 400, 65_536
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %f %f\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """One run of wrk: requests per second, latency in milliseconds."""

    rps: float
    p50: float
    p99: float


class Bench:
    """Starts workers and proxies, and loads them."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self._folder = folder
        self._seconds = seconds
        self._worker = folder / "fake_worker"
        subprocess.run(["gcc", "-O2", "-o", self._worker, HERE.with_name("servers") / "fake_worker.c"], check=True)

    def load(self, url: str, body: bytes, connections: int) -> Load:
        """One second to warm up, then the run that counts. Raises RuntimeError when a request failed."""
        (self._folder / "body").write_bytes(body)
        script = self._folder / "load.lua"
        script.write_text(SCRIPT.format(body=self._folder / "body"))
        for seconds in (1, self._seconds):
            argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), f"{url}/generate"]
            done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=seconds + 20)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        requests, duration, errors, p50, p99 = map(float, line.split()[1:])
        if errors:
            raise RuntimeError(f"{url}: {errors:.0f} of {requests:.0f} requests failed")
        return Load(requests / duration * 1e6, p50 / 1000, p99 / 1000)

    @contextlib.contextmanager
    def workers(self, *replies: bytes) -> Iterator[list[str]]:
        """One worker for each reply; yields their URLs."""
        with contextlib.ExitStack() as stack:
            urls = []
            for index, reply in enumerate(replies):
                path = self._folder / f"reply-{index}"
                path.write_bytes(reply)
                process = stack.enter_context(running([str(self._worker), "0", str(path), "300"]))
                assert process.stdout is not None
                urls.append(f"http://127.0.0.1:{int(process.stdout.readline())}")
            yield urls

    def regular(self, prefix: str, proxy: Callable[[list[str]], contextlib.AbstractContextManager[str]]) -> dict:
        """The numbers of regular mode."""
        small, large = text(SMALL), text(LARGE)
        found = {}
        with self.workers(small, small) as urls, proxy(urls) as url:
            alone, many, most = (self.load(url, small, connections) for connections in (1, 64, 256))
            found = {
                "rps_small_c64": many.rps,
                "rps_small_c256": most.rps,
                "p99_ms_small_c64": many.p99,
                "p50_ms_c1": alone.p50,
            }
        with self.workers(large, large) as urls, proxy(urls) as url:
            found["rps_64k_c64"] = self.load(url, large, 64).rps
        return {prefix + name: value for name, value in found.items()}

    def pairs(self, prefix: str, proxy: Callable[[list[str]], contextlib.AbstractContextManager[str]]) -> dict:
        """The numbers of prefill/decode mode: small bodies, and 64 KB of routed experts from either half."""
        found = {}
        for name, experts in (("rps_pd", b""), ("rps_pd_experts_64k", bytes(LARGE * 3 // 4))):
            with self.workers(generation(experts, 2), generation(experts, 0)) as urls, proxy(urls) as url:
                found[prefix + name] = self.load(url, text(SMALL), 64).rps
        return found


def text(size: int) -> bytes:
    """A JSON body of `size` bytes."""
    return json.dumps({"text": "x" * (size - 12)}).encode()


def generation(experts: bytes, prompt: int) -> bytes:
    """A reply of /generate, with `prompt` input logprobs."""
    meta: dict[str, Any] = {
        "id": "x" * 32,
        "finish_reason": {"type": "length", "length": 4},
        "prompt_tokens": 2,
        "weight_version": "0",
        "weight_versions": [{"version": "0", "start": 0, "end": 4}],
        "input_token_logprobs": [[None, 1, None], [-0.5, 2, None]][:prompt],
        "output_token_logprobs": [[-0.25, 7, None]] * 4,
        "completion_tokens": 4,
        "cached_tokens": 0,
    }
    if experts:
        meta["routed_experts"] = base64.b64encode(experts).decode()
    return json.dumps({"text": "abcd", "output_ids": [7] * 4, "meta_info": meta}).encode()


@contextlib.contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    env = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def direct(urls: list[str]) -> Iterator[str]:
    yield urls[0]


@contextlib.contextmanager
def our_router(urls: list[str], *, pair: bool = False) -> Iterator[str]:
    with running([sys.executable, "-m", "miles_lite", "router"]) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().split()[-1]
        roles = ["worker_type=prefill&bootstrap_port=8998", "worker_type=decode"] if pair else ["", ""]
        for worker, role in zip(urls, roles, strict=True):
            urllib.request.urlopen(f"{url}/add_worker?url={worker}&{role}", data=b"", timeout=10).close()
        yield url


@contextlib.contextmanager
def smg(urls: list[str], *, pair: bool = False) -> Iterator[str]:
    from miles_lite.router.gateway import command, free_port

    port = free_port()
    argv = command(host="127.0.0.1", port=port, metrics_port=free_port(), timeout=60, worker=urls[0], key=None)
    known = argv.index("--worker-urls")
    del argv[known : known + 2]
    if pair:
        policy = argv.index("--policy")
        argv[policy : policy + 4] = ["--policy", "round_robin"]
        argv += ["--pd-disaggregation", "--prefill", urls[0], "8998", "--decode", urls[1]]
    else:
        argv += ["--worker-urls", *urls]
    with running(argv):
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url)
        yield url


@contextlib.contextmanager
def trivial(urls: list[str]) -> Iterator[str]:
    with running([sys.executable, str(HERE), "--serve-aiohttp", *urls]) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 30
    request = urllib.request.Request(f"{url}/generate", text(SMALL), {"Content-Type": "application/json"})
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(request, timeout=5).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within 30 s")


async def serve_aiohttp(urls: list[str]) -> None:
    """The shortest pass-through that aiohttp allows: what its server and client cost, and nothing else."""
    import itertools

    import aiohttp
    from aiohttp import web

    turns = itertools.cycle(urls)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as client:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            headers = {"Content-Type": request.content_type}
            async with client.post(next(turns) + request.path, data=body, headers=headers) as reply:
                return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)

        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()


def measure(seconds: int, rounds: int) -> dict[str, float | None]:
    """All numbers, by the names that --json prints: the best of `rounds`, in which the systems take turns.

    None: that system has no such mode.
    """
    systems = {"direct_": direct, "aiohttp_": trivial, "smg_": smg, "": our_router}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seconds)
        found: dict[str, float] = {}
        for _ in range(rounds):
            for prefix, proxy in systems.items():
                keep_best(found, bench.regular(prefix, proxy))
            keep_best(found, bench.pairs("smg_", lambda urls: smg(urls, pair=True)))
            keep_best(found, bench.pairs("", lambda urls: our_router(urls, pair=True)))
    alone = {prefix: found.pop(f"{prefix}p50_ms_c1") for prefix in systems}
    found |= {f"{prefix}added_p50_ms_c1": value - alone["direct_"] for prefix, value in alone.items()}
    none = [f"{prefix}{name}" for prefix in ("direct_", "aiohttp_") for name in ("rps_pd", "rps_pd_experts_64k")]
    return {name: round(value, 3) for name, value in found.items()} | dict.fromkeys(none)


def keep_best(found: dict[str, float], measured: dict[str, float]) -> None:
    """The higher rate, the lower latency: what else this machine does only ever makes them worse."""
    for name, value in measured.items():
        better = max if "rps" in name else min
        found[name] = better(found.get(name, value), value)


AIMS = {
    "rps_small_c64": "at least 5000, and 0.7 x aiohttp's",
    "rps_64k_c64": "at least 3500, and 0.7 x aiohttp's",
    "rps_small_c256": "at least 0.8 x that at 64 connections",
    "p99_ms_small_c64": "at most 40",
    "added_p50_ms_c1": "at most 0.6",
    "rps_pd": "at least 1500",
    "rps_pd_experts_64k": "printed",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--seconds", type=int, default=2, help="of each load, after one of warming up")
    parser.add_argument("--rounds", type=int, default=3, help="the best of how many counts")
    parser.add_argument("--serve-aiohttp", nargs="+", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_aiohttp:
        asyncio.run(serve_aiohttp(options.serve_aiohttp))
        return
    if lacking := [name for name in ("wrk", "gcc") if shutil.which(name) is None]:
        print(f"router.py: needs {' and '.join(lacking)} (Debian: apt-get install wrk gcc)", file=sys.stderr)
        sys.exit(0 if not options.json else 2)
    found = measure(min(options.seconds, 10), options.rounds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    columns = ("", "aiohttp_", "smg_", "direct_")
    print(f"{'':20}" + "".join(f"{name:>12}" for name in ("router", "aiohttp", "smg", "direct")) + "   asked")
    for name, aim in AIMS.items():
        values = [found[prefix + name] for prefix in columns]
        print(f"{name:20}" + "".join("           -" if one is None else f"{one:12,.2f}" for one in values), "  " + aim)


if __name__ == "__main__":
    main()
