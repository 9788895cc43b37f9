"""The Rust gateway `smg` as the data path: started, watched, and told which workers may serve.

Clients talk to the gateway's port; registrations, weight versions and health stay with our router, which makes the
gateway's list of workers follow its own (smg answers 202 and works later, and 409 while an old entry drains).

To a client, smg says 404 when it knows no worker, and 503 with Retry-After when none that it knows is well. So a worker
of our own, which is never well once it is known, stays on its list.
Invariant: whenever the gateway starts, a canary request passes byte for byte, so nothing that a client sends is lost on
the way; the gateway's process ends with ours.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterable

import aiohttp
from aiohttp import web

from miles_lite.errors import UserError
from miles_lite.process.addresses import bracketed, local, loopback
from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import JsonObject
from miles_lite.process.patience import at_most
from miles_lite.process.probe import answers
from miles_lite.process.undo import undone
from miles_lite.router.replies import failure

log = logging.getLogger(__name__)
START_SECONDS = 30.0
SETTLE_SECONDS = 30.0
STOP_SECONDS = 5.0
CALL_SECONDS = 10.0
TIMEOUT = aiohttp.ClientTimeout(total=CALL_SECONDS)
PATIENCE = 3
"""Calls in a row without an answer after which the gateway hangs."""
PR_SET_PDEATHSIG = 1

VERBATIM = ("--policy", "manual", "--assignment-mode", "min_load", "--disable-retries", "--disable-tokenizer-autoload")
"""Any other policy but a few, retries, and prefill/decode mode make smg parse bodies and drop what it does not know."""

CANARY = (
    b'{"input_ids": [1],  "model": "no-such", "unknown": 1.50, "return_routed_experts": true, '
    b'"sampling_params": {"stop_regex": "x", "unknown": null}}'
)
HEALTH = {"check_interval_secs": 5, "failure_threshold": 3, "drain_settle_secs": 0}
"""How smg looks at engines. Its flags are for our own worker: asked every second, out at the first failure."""
ANSWER = b'{"text": "",  "meta_info": {"unknown": 1.50}}'


def command(*, host: str, port: int, metrics_port: int, timeout: float, worker: str, key: str | None) -> list[str]:
    """The gateway's command line. `worker`: the URL that it knows from the start; `key`: what changing its workers
    takes. Raises UserError when it is not installed."""
    if importlib.util.find_spec("smg") is None:
        raise UserError("--router gateway needs the Rust gateway: pip install 'miles_lite[gateway]' (smg 1.13)")
    options: JsonObject = {
        "host": host,
        "port": port,
        "prometheus-host": "127.0.0.1",
        "prometheus-port": metrics_port,
        "request-timeout-secs": max(1, round(timeout)),
        "shutdown-grace-period-secs": 1,
        "health-check-interval-secs": 1,
        "health-failure-threshold": 1,
        "cb-timeout-duration-secs": 5,
        "backend": "sglang",
        "log-level": "error",
        "worker-urls": worker,
        **({"control-plane-api-keys": f"router:router:admin:{key}"} if key else {}),
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "smg.launch_router", *VERBATIM, *flags]


def free_port() -> int:
    """A port that nobody listens on now: smg takes a number, not a socket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Gateway:
    """One gateway process and its list of workers."""

    def __init__(self, *, host: str, port: int, timeout: float) -> None:
        """Listens on host:port; `timeout`: seconds a request may take."""
        self._host, self._port, self._timeout = host, port, timeout
        self._key = None if loopback(host) else secrets.token_hex(16)
        self._url = f"http://{bracketed(local(host))}:{port}"
        self._own = _OwnWorker()
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()
        self._unanswered = 0
        self.restarts = 0

    async def start(self) -> None:
        """Start the process and prove that it passes bodies on unchanged. Raises UserError when either fails."""
        await self._own.start()
        async with undone(self.stop):
            await self._launch()

    async def stop(self) -> None:
        """End the process. Idempotent."""
        await self._end()
        await self._own.stop()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process and process.returncode is None:
            if self._unanswered < PATIENCE:
                process.terminate()
                await at_most(STOP_SECONDS, process.wait())
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def follow(self, wanted: Iterable[str], *, wait: bool = True) -> None:
        """Make the gateway's workers these URLs; a process that ended or hangs is started again first.

        With `wait` it returns when they are, or raises UserError after a while; else it only asks for it.
        """
        async with self._changing:
            ended = self._process is None or self._process.returncode is not None
            if ended or self._unanswered >= PATIENCE:
                self.restarts += 1
                what = "has ended" if ended else f"hangs: {self._unanswered} times no answer within {CALL_SECONDS:g} s"
                log.warning("the gateway %s; starting it again (%d so far)", what, self.restarts)
                await self._end()
                await self._launch()
            urls, deadline = set(wanted), time.monotonic() + SETTLE_SECONDS
            while not await self._step(urls) and wait:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the gateway did not take over the workers {sorted(urls)} within {SETTLE_SECONDS:g} s"
                    )
                await asyncio.sleep(0.05)

    async def _step(self, urls: set[str]) -> bool:
        """Ask for what is missing; True when the gateway serves exactly `urls`."""
        listed = await self._listed()
        listed.pop(self._own.url, None)
        for url in urls - listed.keys():
            entry = {"url": url, "worker_type": "regular", "health": HEALTH}
            await self._call("POST", "/workers", entry)
        for url in listed.keys() - urls:
            if listed[url].get("status") != "draining":
                await self._call("DELETE", f"/workers/{listed[url]['id']}")
        return listed.keys() == urls and all(one.get("status") == "ready" for one in listed.values())

    async def _listed(self) -> dict[str, JsonObject]:
        """The gateway's workers by URL."""
        return {one["url"].rstrip("/"): one for one in (await self._call("GET", "/workers")).get("workers", ())}

    async def _call(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """The gateway's JSON object; an empty one while it does not answer."""
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT, headers=bearer(self._key)) as client,
                client.request(method, self._url + path, json=body) as reply,
            ):
                answer: JsonObject = await reply.json(content_type=None)
                self._unanswered = 0
                return answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._unanswered += 1
            log.warning("gateway: %s %s: %s", method, path, str(error) or type(error).__name__)
            return {}

    async def _launch(self) -> None:
        """Start the process, with our own worker on its list; returns when that has taken the canary and is out.
        Raises UserError when it does not come so far."""
        self._own.well = True
        libc = ctypes.CDLL(None)
        self._process = process = await asyncio.create_subprocess_exec(
            *command(
                host=self._host,
                port=self._port,
                metrics_port=free_port(),
                timeout=self._timeout,
                worker=self._own.url,
                key=self._key,
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        deadline = time.monotonic() + START_SECONDS
        async with undone(self._end):
            await self._until(process, deadline, well=True)
            await self._prove()
            self._own.well = False
            await self._until(process, deadline, well=False)

    async def _until(self, process: asyncio.subprocess.Process, deadline: float, *, well: bool) -> None:
        """Wait until our own worker is known as `well`, or as not. Raises UserError at the deadline."""
        while process.returncode is None and time.monotonic() < deadline:
            if await answers(f"{self._url}/liveness", seconds=CALL_SECONDS):
                known = (await self._listed()).get(self._own.url)
                if known is not None and (known.get("status") == "ready") is well:
                    return
            await asyncio.sleep(0.05)
        raise UserError(f"the gateway did not start within {START_SECONDS:g} s; its words are on stderr")

    async def _prove(self) -> None:
        """Send the canary through the gateway to our own worker. Raises UserError when a byte differs."""
        self._own.seen.clear()
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT) as client,
                client.post(f"{self._url}/generate", data=CANARY, headers=headers) as reply,
            ):
                answer = await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UserError(f"the gateway does not answer: {str(error) or type(error).__name__}") from error
        if CANARY not in self._own.seen or answer != ANSWER:
            raise UserError(
                "the gateway changes what passes, so that tokens or logprobs could be lost: it made of a request\n"
                f"  {CANARY!r}\n  {self._own.seen!r}, and of the reply\n  {ANSWER!r}\n  {answer!r}.\n"
                "  Install the smg version that this release names, or use --router python."
            )


class _OwnWorker:
    """A worker on loopback that answers the canary while it is `well`; `seen` are the bodies it got.

    Who else comes then is told to come again, with 429: ten 503 would open smg's circuit breaker before the canary.
    """

    def __init__(self) -> None:
        self.url = ""
        self.well = False
        self.seen: list[bytes] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            status = 503 if request.path == "/health" and not self.well else 200
            return web.json_response({"status": "ok", "model_path": "none", "weight_version": "0"}, status=status)
        body = await request.read()
        if self.well:
            self.seen.append(body)
        if self.well and body == CANARY:
            return web.Response(body=ANSWER, content_type="application/json")
        return failure(429, "no engine is ready", kind="no_worker")
