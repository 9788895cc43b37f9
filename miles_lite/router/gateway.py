"""The Rust gateway `smg` as the data path: started, watched, and told which workers may serve.

Clients talk to the gateway's port; registrations, weight versions and health stay with our router, which makes the
gateway's list of workers follow its own (smg answers 202 and works later, and 409 while an old entry drains).
Invariant: at start a canary request has passed byte for byte, so nothing that a client sends is lost on the way; the
gateway's process ends with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
from aiohttp import web

from miles_lite.errors import UserError
from miles_lite.net import bracketed, local

log = logging.getLogger(__name__)
START_SECONDS = 30.0
SETTLE_SECONDS = 30.0
TIMEOUT = aiohttp.ClientTimeout(total=10.0)
PR_SET_PDEATHSIG = 1

VERBATIM = ("--policy", "manual", "--assignment-mode", "min_load", "--disable-retries", "--disable-tokenizer-autoload")
"""Any other policy but a few, retries, and prefill/decode mode make smg parse bodies and drop what it does not know."""

CANARY = (
    b'{"input_ids": [1],  "model": "no-such", "unknown": 1.50, "return_routed_experts": true, '
    b'"sampling_params": {"stop_regex": "x", "unknown": null}}'
)
ANSWER = b'{"text": "",  "meta_info": {"unknown": 1.50}}'


def command(*, host: str, port: int, metrics_port: int, timeout: float) -> list[str]:
    """The gateway's command line. Raises UserError when it is not installed."""
    if importlib.util.find_spec("smg") is None:
        raise UserError("--router gateway needs the Rust gateway: pip install 'miles_lite[gateway]' (smg 1.13)")
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "prometheus-host": "127.0.0.1",
        "prometheus-port": metrics_port,
        "request-timeout-secs": max(1, round(timeout)),
        "shutdown-grace-period-secs": 1,
        "health-check-interval-secs": 5,
        "cb-timeout-duration-secs": 5,
        "backend": "sglang",
        "log-level": "error",
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
        """Listens on host:port; `timeout`: seconds a request may take. Raises UserError when smg is not installed."""
        self._command = command(host=host, port=port, metrics_port=free_port(), timeout=timeout)
        self._url = f"http://{bracketed(local(host))}:{port}"
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()
        self.restarts = 0

    async def start(self) -> None:
        """Start the process and prove that it passes bodies on unchanged. Raises UserError when either fails."""
        await self._launch()
        await self._prove()

    async def stop(self) -> None:
        """End the process. Idempotent."""
        process, self._process = self._process, None
        if process and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def follow(self, wanted: Iterable[str], *, wait: bool = True) -> None:
        """Make the gateway's workers these URLs; a process that ended is started again first.

        With `wait` it returns when they are, or raises UserError after a while; else it only asks for it.
        """
        async with self._changing:
            if self._process is not None and self._process.returncode is not None:
                self.restarts += 1
                log.warning("the gateway ended with code %s; starting it again", self._process.returncode)
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
        listed = {one["url"].rstrip("/"): one for one in (await self._call("GET", "/workers")).get("workers", ())}
        for url in urls - listed.keys():
            entry = {"url": url, "worker_type": "regular", "health": {"drain_settle_secs": 0}}
            await self._call("POST", "/workers", entry)
        for url in listed.keys() - urls:
            if listed[url].get("status") != "draining":
                await self._call("DELETE", f"/workers/{listed[url]['id']}")
        return listed.keys() == urls and all(one.get("status") == "ready" for one in listed.values())

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The gateway's JSON object; an empty one while it does not answer."""
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT) as client,
                client.request(method, self._url + path, json=body) as reply,
            ):
                answer: dict[str, Any] = await reply.json(content_type=None)
                return answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("gateway: %s %s: %s", method, path, error or type(error).__name__)
            return {}

    async def _launch(self) -> None:
        libc = ctypes.CDLL(None)
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
            while process.returncode is None and time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with client.get(f"{self._url}/liveness") as reply:
                        if reply.status == 200:
                            return
                await asyncio.sleep(0.05)
        await self.stop()
        raise UserError(f"the gateway did not start within {START_SECONDS:g} s; its words are on stderr")

    async def _prove(self) -> None:
        """Send the canary through the gateway to a worker of our own. Raises UserError when a byte differs."""
        seen: list[bytes] = []
        async with _canary_worker(seen) as url, aiohttp.ClientSession(timeout=TIMEOUT) as client:
            await self.follow([url])
            headers = {"Content-Type": "application/json"}
            async with client.post(f"{self._url}/generate", data=CANARY, headers=headers) as reply:
                answer = await reply.read()
            await self.follow([])
        if seen != [CANARY] or answer != ANSWER:
            await self.stop()
            raise UserError(
                "the gateway changes what passes, so that tokens or logprobs could be lost: it made of a request\n"
                f"  {CANARY!r}\n  {seen!r}, and of the reply\n  {ANSWER!r}\n  {answer!r}.\n"
                "  Install the smg version that this release names, or use --router python."
            )


@contextlib.asynccontextmanager
async def _canary_worker(seen: list[bytes]) -> AsyncIterator[str]:
    """A worker that keeps the bodies it gets; yields its URL."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            seen.append(await request.read())
            return web.Response(body=ANSWER, content_type="application/json")
        return web.json_response({"status": "ok", "model_path": "canary", "weight_version": "0"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
