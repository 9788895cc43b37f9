"""The weights of one engine: how it gets others, and that it serves what it says.

Invariant: one change at a time, and from `begin_update` to `end_update`, as from `offload` to `onload`, no other;
after one that failed the engine serves what it served before, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

from miles_lite.config.choices import PauseMode
from miles_lite.engine.hosted_server import HostedServer
from miles_lite.engine.spec import EngineSpec
from miles_lite.weights.bucket import Meeting
from miles_lite.weights.fits import Shapes, WeightsError, check_fits, check_shapes, read_shapes
from miles_lite.weights.receiver import (
    EngineError,
    StreamedUpdate,
    WeightUpdate,
    checksums,
    freeze_gc,
    join_group,
    leave_group,
    offload,
    onload,
    update_from_disk,
)

logger = logging.getLogger(__name__)


class ServedWeights(ABC):
    """What an engine's actor does with weights; it is one of these, so that Ray finds the methods."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._server = HostedServer(spec)
        self._updating = asyncio.Lock()
        self._updates = 0
        self._served = WeightUpdate(spec.model_path, spec.weight_version)
        self._streamed: StreamedUpdate | None = None
        self._offloaded = False
        self._meeting: Meeting | None = None
        self._shapes: Shapes = {}

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
            seconds = await update_from_disk(update, **self._server.address)
            self._served = update
            return seconds

    async def begin_update(self, update: WeightUpdate) -> None:
        """Pause and wait for the buckets of `update`; `end_update` must follow. Raises WeightsError and EngineError,
        and then nothing has changed."""
        async with self._begun():
            for bucket in update.buckets:
                check_shapes(dict(zip(bucket.names, bucket.shapes, strict=True)), self._shapes, where="the trainer")
            streamed = StreamedUpdate(update, old=self._served, **self._server.address)
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
        """Enter the trainer's process group, from which `load_bucket` receives. Raises EngineError."""
        await self.leave_group()
        await join_group(meeting, first_rank=first_rank, **self._server.address)
        self._meeting = meeting

    async def leave_group(self) -> None:
        """Leave it, if any."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            with contextlib.suppress(EngineError):  # it is gone already
                await leave_group(meeting, **self._server.address)

    async def offload(self) -> None:
        """Free the memory of weights and cache until `onload`; requests wait. Raises EngineError. Idempotent."""
        if not self._offloaded:
            async with self._begun():
                await offload(PauseMode.RETRACT, **self._server.address)
            self._offloaded = True

    async def onload(self) -> None:
        """Take the memory back and serve on. Raises EngineError. Idempotent."""
        if self._offloaded:
            await onload(**self._server.address)
            self._offloaded = False
            self._updating.release()

    async def verify_weights(self) -> int:
        """Compare, tensor by tensor, what is served with what its folder holds; returns the number of tensors.

        The folder is loaded for it. Raises WeightsError naming the tensors that differ.
        """
        async with self._updating:
            self._updates += 1
            served = await checksums(**self._server.address)
            await update_from_disk(self._served, **self._server.address)
            stored = await checksums(**self._server.address)
        differ = [name for name in stored if served.get(name) != stored[name]]
        if differ or not stored:
            shown = ", ".join(differ[:5]) or "none has a checksum"
            raise WeightsError(
                f"{self!r}: {len(differ)} of {len(stored)} tensors differ from {self._served.path}: {shown}"
            )
        return len(stored)

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

    async def _prepare_updates(self) -> None:
        """Learn the served shapes, for the check of later updates, and make cache flushes cheap."""
        with contextlib.suppress(WeightsError):  # a model in another format, or the name of one on a hub
            self._shapes = read_shapes(Path(self._spec.model_path))
        try:
            await freeze_gc(**self._server.address)
        except EngineError as error:  # older servers lack it: updates then take longer
            logger.info("%r: %s", self, error)
