"""Weights into a running server: from a folder, from memory that it shares with the trainer, or by broadcast.

Invariant: generation is never left paused, whether the update succeeds, fails or is cancelled; but after a failed
update the server serves its old weights under their old version or nothing at all, never a mixture.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import aiohttp

from miles_lite.config.choices import PauseMode
from miles_lite.process.undo import undone
from miles_lite.weights.bucket import GROUP_TIMEOUT, Bucket, Meeting

CALL_TIMEOUT = 600.0
GROUP_CALL_TIMEOUT = GROUP_TIMEOUT + 30.0
"""Longer than the trainer waits: its error is the better one."""
CONTROL_TIMEOUT = 60.0
"""Seconds for what moves no weights: a scheduler that hangs does not answer."""
FLUSH_TIMEOUT = 30.0


@dataclass(frozen=True)
class WeightUpdate:
    """New weights: the Hugging Face folder that holds them, or will; the version that responses carry from then on;
    what requests in flight do; and the buckets they come in when they do not come from the folder.

    retract   they wait and recompute their cache with the new weights
    in_place  they go on with the cache they have; later requests reuse it too, where their prefix is cached
    abort     they end early, finish reason "abort"
    """

    path: str
    version: int
    pause_mode: PauseMode = PauseMode.RETRACT
    buckets: tuple[Bucket, ...] = ()


class EngineError(RuntimeError):
    """The server refused a request or did not answer. The message holds its words."""


async def update_from_disk(update: WeightUpdate, *, url: str, headers: Mapping[str, str]) -> float:
    """Pause, flush the cache, load, continue; returns seconds. Raises EngineError with the server's words."""
    started = time.monotonic()
    async with _session(url, headers) as server, _paused(server, update.pause_mode):
        if update.pause_mode != PauseMode.IN_PLACE:
            await _flush(server)
        await _load_folder(server, update)
    return time.monotonic() - started


async def _load_folder(server: aiohttp.ClientSession, update: WeightUpdate) -> None:
    body = {"model_path": update.path, "weight_version": str(update.version), "flush_cache": False}
    await _post(server, "/update_weights_from_disk", body)


class StreamedUpdate:
    """An update whose weights come bucket by bucket: `open`, `load` for each bucket in order, `close`."""

    def __init__(self, update: WeightUpdate, *, old: WeightUpdate, url: str, headers: Mapping[str, str]) -> None:
        """`old` is what the server serves now, in a folder from which it can be restored."""
        self.update = update
        self._old = old
        self._address = (url, headers)
        self._pause = contextlib.AsyncExitStack()
        self._started = time.monotonic()
        self._loaded = 0

    async def open(self) -> None:
        """Pause, flush the cache, and let the server make its weights writable. Raises EngineError; then nothing has
        changed."""
        async with contextlib.AsyncExitStack() as pause:
            self._server = await pause.enter_async_context(_session(*self._address))
            await pause.enter_async_context(_paused(self._server, self.update.pause_mode))
            if self.update.pause_mode != PauseMode.IN_PLACE:
                await _flush(self._server)
            await _post(self._server, "/begin_weight_update", {"selector": "all"}, timeout=CONTROL_TIMEOUT)
            self._pause = pause.pop_all()

    async def load(self, shared: Sequence[bytes], meeting: Meeting | None) -> None:
        """Take the next bucket: from the memory that `shared` names, one handle per rank of this server, or, without
        any, from the group of `meeting`. Raises EngineError."""
        bucket = self.update.buckets[self._loaded]
        self._loaded += 1  # also when it fails: a part may have been written
        body: dict[str, object] = {"load_format": "flattened_bucket", "flush_cache": False}
        if shared:
            body["serialized_named_tensors"] = [base64.b64encode(handle).decode() for handle in shared]
            await _post(self._server, "/update_weights_from_tensor", body)
            return
        assert meeting is not None
        body |= {"names": bucket.names, "shapes": bucket.shapes, "dtypes": [bucket.dtype] * len(bucket.names)}
        body["group_name"] = meeting.name
        await _post(self._server, "/update_weights_from_distributed", body, timeout=GROUP_CALL_TIMEOUT)

    async def close(self, *, commit: bool) -> float:
        """Continue generation with the new weights, or with the old ones restored; seconds since the update began.

        Raises EngineError when neither can be: the server stays paused then and must be ended.
        """
        complete = self._loaded == len(self.update.buckets)
        async with undone(self._leave_paused):
            await _post(self._server, "/end_weight_update", {})
            if commit and complete:
                version = {"new_version": str(self.update.version), "abort_all_requests": False}
                await _post(self._server, "/update_weight_version", version)
            elif self._loaded:
                await _load_folder(self._server, self._old)
        await self._pause.aclose()
        return time.monotonic() - self._started

    async def _leave_paused(self) -> None:
        self._pause.pop_all()
        await self._server.close()


async def join_group(meeting: Meeting, *, first_rank: int, url: str, headers: Mapping[str, str]) -> None:
    """Let the server's ranks enter the trainer's group. Returns once all members are there. Raises EngineError."""
    body = {
        "master_address": meeting.host,
        "master_port": meeting.port,
        "rank_offset": first_rank,
        "world_size": meeting.world_size,
        "group_name": meeting.name,
        "backend": meeting.backend,
    }
    async with _session(url, headers) as server:
        await _post(server, "/init_weights_update_group", body, timeout=GROUP_CALL_TIMEOUT)


async def leave_group(meeting: Meeting, *, url: str, headers: Mapping[str, str]) -> None:
    """Let the server's ranks leave. Raises EngineError when they are in no such group."""
    async with _session(url, headers) as server:
        await _post(server, "/destroy_weights_update_group", {"group_name": meeting.name}, timeout=GROUP_CALL_TIMEOUT)


async def checksums(*, url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """What the server computes over each tensor it serves; keys name rank and tensor. Raises EngineError."""
    async with _session(url, headers) as server:
        answer = await _post(server, "/weights_checker", {"action": "checksum", "selector": "all"})
    ranks = cast("list[dict[str, dict[str, str]]]", answer.get("ranks") or [])
    return {f"{at}/{name}": value for at, rank in enumerate(ranks) for name, value in rank["checksums"].items()}


async def offload(mode: PauseMode, *, url: str, headers: Mapping[str, str]) -> None:
    """Stop generation as `mode` says and free the memory of weights and cache. Raises EngineError, and then goes on.

    The server ends when it is told to free memory while requests run, so it is paused and flushed first.
    """
    async with _session(url, headers) as server, undone(lambda: _continue_if_it_can(server)):
        await _post(server, "/pause_generation", {"mode": mode}, timeout=CONTROL_TIMEOUT)
        await _flush(server)
        await _post(server, "/release_memory_occupation", {})


async def onload(*, url: str, headers: Mapping[str, str]) -> None:
    """Undo `offload`: memory, then generation. Raises EngineError."""
    async with _session(url, headers) as server:
        await _post(server, "/resume_memory_occupation", {})
        await _continue(server)


async def freeze_gc(*, url: str, headers: Mapping[str, str]) -> None:
    """Keep the server's start-up objects out of its garbage collections, which every cache flush runs."""
    async with _session(url, headers) as server:
        await _post(server, "/freeze_gc", {})


def _session(url: str, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, headers=headers)


@contextlib.asynccontextmanager
async def _paused(server: aiohttp.ClientSession, mode: PauseMode) -> AsyncIterator[None]:
    """No token is generated inside. The first error is the one that is raised."""
    async with undone(lambda: _continue_if_it_can(server)):
        await _post(server, "/pause_generation", {"mode": mode}, timeout=CONTROL_TIMEOUT)
        yield
    await asyncio.shield(_continue(server))


async def _continue(server: aiohttp.ClientSession) -> None:
    await _post(server, "/continue_generation", {"torch_empty_cache": False}, timeout=CONTROL_TIMEOUT)


async def _continue_if_it_can(server: aiohttp.ClientSession) -> None:
    with contextlib.suppress(EngineError):
        await asyncio.shield(_continue(server))


async def _flush(server: aiohttp.ClientSession) -> None:
    """The server refuses until the requests that the pause stopped have left the running batch."""
    deadline = time.monotonic() + FLUSH_TIMEOUT
    while True:
        try:
            await _post(server, "/flush_cache", {}, timeout=CONTROL_TIMEOUT)
            return
        except EngineError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


async def _post(
    server: aiohttp.ClientSession, path: str, body: Mapping[str, object], *, timeout: float = CALL_TIMEOUT
) -> dict[str, object]:
    """The answer's object, {} for another answer. Raises EngineError unless the status is 200."""
    limit = aiohttp.ClientTimeout(total=timeout, sock_connect=5.0)
    try:
        async with server.post(path, json=body, timeout=limit) as reply:
            text = (await reply.text()).strip()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(
            f"{path} {_shown(body)}: no answer from the server: {error or type(error).__name__}"
        ) from error
    if reply.status != 200:
        raise EngineError(f"{path} {_shown(body)}: the server answered {reply.status}: {text}")
    with contextlib.suppress(ValueError):
        if isinstance(answer := json.loads(text), dict):
            return answer
    return {}


def _shown(body: Mapping[str, object]) -> str:
    return textwrap.shorten(str(body), 300)
