"""Weights into a running server: from a folder, from memory that it shares with the trainer, or by broadcast.

Invariant: one change at a time, and from `begin_update` to `end_update`, as from `offload` to `onload`, no other.
Generation is never left paused, whether an update succeeds, fails or is cancelled; but after a failed update the server
serves its old weights under their old version or nothing at all, never a mixture.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import aiohttp

from miles_lite.config.choices import PauseMode
from miles_lite.process.undo import undone
from miles_lite.weights.bucket import GROUP_TIMEOUT, Meeting, WeightUpdate
from miles_lite.weights.fits import Shapes, WeightsError, check_fits, check_shapes, read_shapes

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 600.0
GROUP_CALL_TIMEOUT = GROUP_TIMEOUT + 30.0
"""Longer than the trainer waits: its error is the better one."""
CONTROL_TIMEOUT = 60.0
"""Seconds for what moves no weights: a scheduler that hangs does not answer."""
FLUSH_TIMEOUT = 30.0


class EngineError(RuntimeError):
    """The server refused a request or did not answer. The message holds its words."""


class ReceivingActor(ABC):
    """An engine's actor, as far as weights go: what `delivery.Engine` asks of it."""

    def __init__(self, served: WeightUpdate) -> None:
        """`served` is what the server starts with."""
        self._served = served
        self._streamed: StreamedUpdate | None = None
        self._updating = asyncio.Lock()
        self._updates = 0
        self._offloaded = False
        self._meeting: Meeting | None = None
        self._shapes: Shapes = {}

    @abstractmethod
    def _open(self) -> aiohttp.ClientSession:
        """The server's own endpoints."""

    @abstractmethod
    async def stop(self) -> None:
        """End the server: it serves nothing that can be told."""

    async def update_weights(self, update: WeightUpdate) -> float:
        """Load a folder's weights into the running server; returns seconds, pause included.

        Raises WeightsError when the folder does not fit the model, EngineError with the server's words when it refuses;
        the old weights are then still served under their version.
        """
        async with self._updating:
            self._updates += 1
            check_fits(Path(update.path), self._shapes)
            seconds = await self._load(update)
            self._served = update
            return seconds

    async def begin_update(self, update: WeightUpdate) -> None:
        """Pause and wait for the buckets of `update`; `end_update` must follow. Raises WeightsError and EngineError,
        and then nothing has changed."""
        async with self._begun():
            for bucket in update.buckets:
                check_shapes(dict(zip(bucket.names, bucket.shapes, strict=True)), self._shapes, where="the trainer")
            streamed = StreamedUpdate(update, old=self._served, server=self._open())
            await streamed.open()
        self._streamed = streamed

    async def load_bucket(self, shared: list[bytes]) -> None:
        """Take the next bucket; see StreamedUpdate.load."""
        assert self._streamed is not None, "begin_update comes first"
        await self._streamed.load(shared, self._meeting)

    async def end_update(self, *, commit: bool) -> float:
        """Serve on, with the new weights when `commit`, else with the old ones; returns seconds since `begin_update`.

        When neither is possible the server is ended, and EngineError raised.
        """
        streamed, self._streamed = self._streamed, None
        assert streamed is not None, "begin_update comes first"
        try:
            seconds = await streamed.close(commit=commit)
        except EngineError:
            await self.stop()
            raise
        finally:
            self._updating.release()
        if commit:
            self._served = streamed.update
        return seconds

    async def join_group(self, meeting: Meeting, first_rank: int) -> None:
        """Let the server's ranks enter the trainer's process group, from which `load_bucket` receives. Returns once all
        members are there. Raises EngineError."""
        await self.leave_group()
        body = {
            "master_address": meeting.host,
            "master_port": meeting.port,
            "rank_offset": first_rank,
            "world_size": meeting.world_size,
            "group_name": meeting.name,
            "backend": meeting.backend,
        }
        async with self._open() as server:
            await _post(server, "/init_weights_update_group", body, timeout=GROUP_CALL_TIMEOUT)
        self._meeting = meeting

    async def leave_group(self) -> None:
        """Leave it, if any."""
        meeting, self._meeting = self._meeting, None
        if meeting is None:
            return
        async with self._open() as server:
            with contextlib.suppress(EngineError):  # it is gone already
                body = {"group_name": meeting.name}
                await _post(server, "/destroy_weights_update_group", body, timeout=GROUP_CALL_TIMEOUT)

    async def offload(self) -> None:
        """Free the memory of weights and cache until `onload`; requests wait. Raises EngineError, and then goes on.
        Idempotent.

        The server ends when it is told to free memory while requests run, so it is paused and flushed first.
        """
        if self._offloaded:
            return
        async with self._begun(), self._open() as server, undone(lambda: _continue_if_it_can(server)):
            await _pause(server, PauseMode.RETRACT)
            await _post(server, "/release_memory_occupation", {})
        self._offloaded = True

    async def onload(self) -> None:
        """Take the memory back and serve on. Raises EngineError. Idempotent."""
        if not self._offloaded:
            return
        async with self._open() as server:
            await _post(server, "/resume_memory_occupation", {})
            await _continue(server)
        self._offloaded = False
        self._updating.release()

    async def verify_weights(self) -> int:
        """Compare, tensor by tensor, what is served with what its folder holds; returns the number of tensors.

        The folder is loaded for it. Raises WeightsError naming the tensors that differ.
        """
        async with self._updating:
            self._updates += 1
            served = await self._checksums()
            await self._load(self._served)
            stored = await self._checksums()
        differ = [name for name in stored if served.get(name) != stored[name]]
        if differ or not stored:
            shown = ", ".join(differ[:5]) or "none has a checksum"
            raise WeightsError(
                f"{self!r}: {len(differ)} of {len(stored)} tensors differ from {self._served.path}: {shown}"
            )
        return len(stored)

    async def _prepare_updates(self) -> None:
        """Learn the served shapes, for the check of later updates, and keep the server's start-up objects out of its
        garbage collections, which every cache flush runs."""
        with contextlib.suppress(WeightsError):  # a model in another format, or the name of one on a hub
            self._shapes = read_shapes(Path(self._served.path))
        try:
            async with self._open() as server:
                await _post(server, "/freeze_gc", {})
        except EngineError as error:  # older servers lack it: updates then take longer
            logger.info("%r: %s", self, error)

    @contextlib.asynccontextmanager
    async def _begun(self) -> AsyncIterator[None]:
        """A change that goes on beyond this block, and excludes others until `_updating` is released; unless it fails
        here."""
        await self._updating.acquire()
        self._updates += 1
        with contextlib.ExitStack() as failed:
            failed.callback(self._updating.release)
            yield
            failed.pop_all()

    async def _load(self, update: WeightUpdate) -> float:
        """Pause, flush the cache, load the folder, continue; returns seconds. Raises EngineError."""
        started = time.monotonic()
        async with self._open() as server, _paused(server, update.pause_mode):
            await _load_folder(server, update)
        return time.monotonic() - started

    async def _checksums(self) -> dict[str, str]:
        """What the server computes over each tensor it serves; keys name rank and tensor. Raises EngineError."""
        async with self._open() as server:
            answer = await _post(server, "/weights_checker", {"action": "checksum", "selector": "all"})
        ranks = cast("list[dict[str, dict[str, str]]]", answer.get("ranks") or [])
        return {f"{at}/{name}": value for at, rank in enumerate(ranks) for name, value in rank["checksums"].items()}


class StreamedUpdate:
    """An update whose weights come bucket by bucket: `open`, `load` for each bucket in order, `close`."""

    def __init__(self, update: WeightUpdate, *, old: WeightUpdate, server: aiohttp.ClientSession) -> None:
        """`old` is what `server` serves now, in a folder from which it can be restored."""
        self.update = update
        self._old, self._server = old, server
        self._pause = contextlib.AsyncExitStack()
        self._started = time.monotonic()
        self._loaded = 0

    async def open(self) -> None:
        """Pause, flush the cache, and let the server make its weights writable. Raises EngineError; then nothing has
        changed."""
        async with contextlib.AsyncExitStack() as pause:
            await pause.enter_async_context(self._server)
            await pause.enter_async_context(_paused(self._server, self.update.pause_mode))
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


async def _load_folder(server: aiohttp.ClientSession, update: WeightUpdate) -> None:
    body = {"model_path": update.path, "weight_version": str(update.version), "flush_cache": False}
    await _post(server, "/update_weights_from_disk", body)


@contextlib.asynccontextmanager
async def _paused(server: aiohttp.ClientSession, mode: PauseMode) -> AsyncIterator[None]:
    """No token is generated inside. The first error is the one that is raised."""
    async with undone(lambda: _continue_if_it_can(server)):
        await _pause(server, mode)
        yield
    await asyncio.shield(_continue(server))


async def _pause(server: aiohttp.ClientSession, mode: PauseMode) -> None:
    """Stop generation as `mode` says, and flush the cache unless it is to be used on."""
    await _post(server, "/pause_generation", {"mode": mode}, timeout=CONTROL_TIMEOUT)
    if mode != PauseMode.IN_PLACE:
        await _flush(server)


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
