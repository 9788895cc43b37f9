"""Weights into a running server, from a folder.

Invariant: generation is never left paused, whether the update succeeds, fails or is cancelled; after a refused update
the server still serves its old weights under their old version.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

CALL_TIMEOUT = 600.0
FLUSH_TIMEOUT = 30.0
PauseMode = Literal["retract", "in_place", "abort"]


@dataclass(frozen=True)
class WeightUpdate:
    """New weights: a Hugging Face folder, the version that responses carry from then on, what requests in flight do.

    retract   they wait and recompute their cache with the new weights
    in_place  they go on with the cache they have; later requests reuse it too, where their prefix is cached
    abort     they end early, finish reason "abort"
    """

    path: str
    version: int
    pause_mode: PauseMode = "retract"


class EngineError(RuntimeError):
    """The server refused a request or did not answer. The message holds its words."""


async def update_from_disk(update: WeightUpdate, *, url: str, headers: Mapping[str, str]) -> float:
    """Pause, flush the cache, load, continue; returns seconds. Raises EngineError with the server's words."""
    started = time.monotonic()
    async with _session(url, headers) as server, _paused(server, update.pause_mode):
        if update.pause_mode != "in_place":
            await _flush(server)
        body = {"model_path": update.path, "weight_version": str(update.version), "flush_cache": False}
        await _post(server, "/update_weights_from_disk", body)
    return time.monotonic() - started


async def freeze_gc(*, url: str, headers: Mapping[str, str]) -> None:
    """Keep the server's start-up objects out of its garbage collections, which every cache flush runs."""
    async with _session(url, headers) as server:
        await _post(server, "/freeze_gc", {})


def _session(url: str, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT, sock_connect=5.0)
    return aiohttp.ClientSession(url, timeout=timeout, headers=headers)


@contextlib.asynccontextmanager
async def _paused(server: aiohttp.ClientSession, mode: PauseMode) -> AsyncIterator[None]:
    """No token is generated inside. The first error is the one that is raised."""
    try:
        await _post(server, "/pause_generation", {"mode": mode})
        yield
    except BaseException:
        with contextlib.suppress(EngineError):
            await asyncio.shield(_continue(server))
        raise
    await asyncio.shield(_continue(server))


async def _continue(server: aiohttp.ClientSession) -> None:
    await _post(server, "/continue_generation", {"torch_empty_cache": False})


async def _flush(server: aiohttp.ClientSession) -> None:
    """The server refuses until the requests that the pause stopped have left the running batch."""
    deadline = time.monotonic() + FLUSH_TIMEOUT
    while True:
        try:
            return await _post(server, "/flush_cache", {})
        except EngineError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


async def _post(server: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> None:
    try:
        async with server.post(path, json=body) as reply:
            text = (await reply.text()).strip()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{path} {body}: no answer from the server: {error or type(error).__name__}") from error
    if reply.status != 200:
        raise EngineError(f"{path} {body}: the server answered {reply.status}: {text}")
