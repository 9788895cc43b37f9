"""Weights into a running server, from a folder.

Invariant: generation is never left paused, whether the update succeeds, fails or is cancelled; after a failed update
the server still serves its old weights under their old version.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

CALL_TIMEOUT = 600.0
FLUSH_TIMEOUT = 30.0


@dataclass(frozen=True)
class WeightUpdate:
    """New weights: a Hugging Face folder, the version that responses carry from then on, what requests in flight do.

    retract   they wait and recompute their cache with the new weights
    in_place  they go on with the cache they have
    abort     they end early, finish reason "abort"
    """

    path: str
    version: int
    pause_mode: Literal["retract", "in_place", "abort"] = "retract"


class EngineError(RuntimeError):
    """The server refused a request. The message holds its words."""


async def update_from_disk(update: WeightUpdate, *, url: str, headers: dict[str, str]) -> float:
    """Pause, flush the cache, load, continue; returns seconds. Raises EngineError with the server's words."""
    if not Path(update.path).is_dir():
        raise EngineError(f"no weights at {update.path}: no such folder on this node (is it on a shared file system?)")
    started = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT, sock_connect=5.0)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers) as server:
        try:
            await _post(server, "/pause_generation", {"mode": update.pause_mode})
            if update.pause_mode != "in_place":
                await _flush(server)
            body = {"model_path": update.path, "weight_version": str(update.version), "flush_cache": False}
            await _post(server, "/update_weights_from_disk", body)
        finally:
            await asyncio.shield(_post(server, "/continue_generation", {"torch_empty_cache": False}))
    return time.monotonic() - started


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
    async with server.post(path, json=body) as reply:
        text = await reply.text()
        if reply.status != 200:
            raise EngineError(f"{reply.url} answered {reply.status} to {body}: {text.strip()}")
