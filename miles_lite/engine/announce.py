"""Tells a router of an engine that it comes, or goes.

Invariant: a call ends within a bound; `deregister` within fewer seconds than an actor has to stop.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp

from miles_lite.engine.spec import EngineInfo
from miles_lite.errors import UserError
from miles_lite.process.admin_key import VARIABLE, bearer

REGISTERING, DEREGISTERING = 15.0, 5.0
"""Seconds. A router connects to whoever registers, and asks it for its weight version."""
REPLACED, RETRY = 30.0, 0.25
"""How long, and how often, a router that is not there is asked again: one that is replaced is back in less."""


class _RefusedError(aiohttp.ClientError):
    """The router answered, and it will not."""


async def register(info: EngineInfo, *, router_url: str, key: str | None) -> None:
    """Requests may come from now on. Raises UserError when the router refuses or does not answer."""
    query = {"url": info.url, "worker_type": info.worker_type}
    if info.bootstrap_port is not None:
        query["bootstrap_port"] = str(info.bootstrap_port)
    deadline = time.monotonic() + REPLACED
    while True:
        try:
            return await _post(f"{router_url}/add_worker", query, key, seconds=REGISTERING)
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, _RefusedError) or time.monotonic() > deadline:
                raise UserError(
                    f"the engine at {info.url} is healthy but the router at {router_url} did not accept it: "
                    f"{error or 'no answer'}.\n  Check --sglang-router-ip and --sglang-router-port, or leave them out: "
                    f"one is started. A router off loopback wants its admin key: set {VARIABLE} as it was when the "
                    "router was started."
                ) from error
        await asyncio.sleep(RETRY)


async def deregister(url: str, *, router_url: str, key: str | None) -> None:
    """No request shall come any more. Raises aiohttp.ClientError and TimeoutError."""
    await _post(f"{router_url}/remove_worker", {"url": url}, key, seconds=DEREGISTERING)


async def _post(url: str, query: dict[str, str], key: str | None, *, seconds: float) -> None:
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=bearer(key)) as session,
        session.post(url, params=query) as reply,
    ):
        if reply.status != 200:
            said = f"{url} answered {reply.status}: {(await reply.text()).strip()}"
            raise _RefusedError(said) if reply.status < 500 else aiohttp.ClientError(said)
