"""`EngineActor`: the Ray actor that owns one SGLang server.

Invariant: a registered engine is healthy; after `stop`, or when the actor dies in any way, no process of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray

from miles_lite.config.choices import PauseMode, WorkerType
from miles_lite.config.redaction import secrets_in
from miles_lite.engine import disaggregation
from miles_lite.engine.announce import deregister, register
from miles_lite.engine.cpu_shim import needs_profile
from miles_lite.engine.features import check, probe
from miles_lite.engine.launch import Placement, command, environment
from miles_lite.engine.liveness import Liveness
from miles_lite.engine.ports import Ports, require_free
from miles_lite.engine.server_process import ServerProcess, wait_healthy
from miles_lite.engine.sglang_flags import known_options
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.errors import UserError
from miles_lite.process.addresses import actor_label, bracketed, local, loopback, reachable
from miles_lite.process.admin_key import bearer
from miles_lite.weights.bucket import Meeting, memory
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
MEETING_PORTS = 30
"""SGLang's ranks take ports above the one they meet at."""


class EngineActor:
    """One SGLang server. Callers wrap it: `ray.remote(EngineActor).options(...).remote(spec)`."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._server: ServerProcess | None = None
        self._ports = Ports()
        self._info: EngineInfo | None = None
        self._updating = asyncio.Lock()
        self._updates = 0
        self._served = WeightUpdate(spec.model_path, spec.weight_version)
        self._streamed: StreamedUpdate | None = None
        self._offloaded = False
        self._registered = False
        self._meeting: Meeting | None = None
        self._meeting_address: str | None = None
        self._shapes: Shapes = {}

    def __repr__(self) -> str:
        return actor_label("EngineActor", self._spec.index, self._spec.worker_type)

    async def meet(self) -> str:
        """The first node of several: where all nodes' servers meet, host:port; it and MEETING_PORTS above are held."""
        port = self._ports.hold(self._spec.hosts.bind_host, consecutive=MEETING_PORTS)
        return f"{bracketed(reachable(self._spec.hosts.public_host))}:{port}"

    async def start(self, *, register: bool = True, meeting: str | None = None) -> EngineInfo:
        """Launch, wait until healthy, register. Raises UserError when any of it fails; then nothing is left running.

        Without `register`, the router does not hear of it before `register` is called. `meeting` is where the nodes of
        an engine that spans several meet, as its first node's `meet` said.
        """
        if self._info is not None:
            return self._info
        self._meeting_address = meeting
        try:
            self._info = await (self._adopt(self._spec.external_url) if self._spec.external_url else self._launch())
            if self._spec.node_rank > 0:
                return self._info
            features = await probe(**self._address())
            check(features, self._spec)
            self._info = dataclasses.replace(self._info, ranks=features.ranks(otherwise=self._spec.slots))
            await self._prepare_updates()
            if register:
                await self.register()
        except BaseException:
            await self.stop()
            raise
        return self._info

    async def register(self) -> None:
        """Tell the router, if there is one. Raises UserError when it refuses."""
        assert self._info is not None, "start comes first"
        if self._spec.router_url:
            self._registered = True
            await register(self._info, router_url=self._spec.router_url, key=self._spec.router_key)

    async def alive(self) -> bool:
        """True while the server's process lives."""
        return self._server is not None and self._server.exit_code is None

    async def watch(self) -> str:
        """Return, with the reason, as soon as the server has ended or hangs; what hangs is killed."""
        assert self._info is not None, "start comes first"
        ended = asyncio.create_task(self._server.wait() if self._server else _never())
        first = self._spec.node_rank == 0  # only the first node of several can be asked
        hanging = asyncio.create_task(self._hangs(self._own_url()) if first else _never())
        try:
            await asyncio.wait({ended, hanging}, return_when=asyncio.FIRST_COMPLETED)
            return "its process has ended" if ended.done() else hanging.result()
        finally:
            ended.cancel()
            hanging.cancel()

    async def _hangs(self, url: str) -> str:
        """Probe again and again; what is seen while an update pauses the server does not count."""
        options, server = self._spec.engines, self._server
        pid = server.pid if server else None
        liveness = Liveness(pid, url, timeout=options.engine_health_timeout, patience=options.engine_hang_timeout)
        while True:
            await asyncio.sleep(options.engine_health_interval)
            updates = self._updates
            reason = None if self._updating.locked() else await liveness.probe()
            if self._updating.locked() or self._updates != updates:
                liveness.rest()
            elif reason is not None:
                if server is not None:
                    server.kill()
                return reason

    async def update_weights(self, update: WeightUpdate) -> float:
        """Load a folder's weights into the running server; returns seconds, pause included.

        Raises WeightsError when the folder does not fit the model, EngineError with the server's words when it refuses;
        the old weights are then still served under their version.
        """
        async with self._updating:
            self._updates += 1
            check_fits(Path(update.path), self._shapes)
            seconds = await update_from_disk(update, **self._address())
            self._served = update
            return seconds

    async def begin_update(self, update: WeightUpdate) -> None:
        """Pause and wait for the buckets of `update`; `end_update` must follow. Raises WeightsError and EngineError,
        and then nothing has changed."""
        await self._updating.acquire()
        self._updates += 1
        try:
            for bucket in update.buckets:
                check_shapes(dict(zip(bucket.names, bucket.shapes, strict=True)), self._shapes, where="the trainer")
            streamed = StreamedUpdate(update, old=self._served, **self._address())
            await streamed.open()
        except BaseException:
            self._updating.release()
            raise
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
        await join_group(meeting, first_rank=first_rank, **self._address())
        self._meeting = meeting

    async def leave_group(self) -> None:
        """Leave it, if any."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            with contextlib.suppress(EngineError):  # it is gone already
                await leave_group(meeting, **self._address())

    async def offload(self) -> None:
        """Free the memory of weights and cache until `onload`; requests wait. Raises EngineError. Idempotent."""
        if not self._offloaded:
            await self._updating.acquire()  # held until onload: nothing else may touch the server
            self._updates += 1
            try:
                await offload(PauseMode.RETRACT, **self._address())
            except BaseException:
                self._updating.release()
                raise
            self._offloaded = True

    async def onload(self) -> None:
        """Take the memory back and serve on. Raises EngineError. Idempotent."""
        if self._offloaded:
            await onload(**self._address())
            self._offloaded = False
            self._updating.release()

    async def verify_weights(self) -> int:
        """Compare, tensor by tensor, what is served with what its folder holds; returns the number of tensors.

        The folder is loaded for it. Raises WeightsError naming the tensors that differ.
        """
        async with self._updating:
            self._updates += 1
            served = await checksums(**self._address())
            await update_from_disk(self._served, **self._address())
            stored = await checksums(**self._address())
        differ = [name for name in stored if served.get(name) != stored[name]]
        if differ or not stored:
            shown = ", ".join(differ[:5]) or "none has a checksum"
            raise WeightsError(
                f"{self!r}: {len(differ)} of {len(stored)} tensors differ from {self._served.path}: {shown}"
            )
        return len(stored)

    async def stop(self) -> None:
        """Deregister and end the server. Idempotent."""
        info, server = self._info, self._server
        self._info = self._server = None
        if info and self._spec.router_url and self._registered:
            try:
                await deregister(info.url, router_url=self._spec.router_url, key=self._spec.router_key)
            except (aiohttp.ClientError, TimeoutError) as error:
                logger.warning("%r: could not deregister from %s: %s", self, self._spec.router_url, error)
        if server:
            await server.stop()
        self._ports.release()

    def _address(self) -> dict[str, Any]:
        """Where the server's own endpoints are, and the key to them."""
        if self._info is None:
            raise RuntimeError(f"{self!r}: weights cannot be updated before start")
        return {"url": self._own_url(), "headers": self._headers()}

    async def _adopt(self, url: str) -> EngineInfo:
        """Wait for a server that somebody else started."""
        await wait_healthy(url, self._spec.engines.engine_start_timeout)
        return EngineInfo(
            url=url,
            worker_type=WorkerType.REGULAR,
            bootstrap_port=None,
            pid=0,
            weight_version=self._spec.weight_version,
            memory=memory() if loopback(urlsplit(url).hostname or "") else None,
        )

    async def _launch(self) -> EngineInfo:
        """Start the server; once more on another port when another process took the one that was chosen for it."""
        spec = self._spec
        if spec.worker_type != WorkerType.REGULAR and spec.device == "cpu" and (reason := disaggregation.missing()):
            raise UserError(f"engine {spec.index} is to {spec.worker_type}, but {reason}")
        try:
            return await self._serve()
        except UserError:
            server = self._server
            others_wait = spec.nodes > 1
            if server is None or "port" in spec.engines.sglang_args or others_wait or not server.lost_port():
                raise
        logger.warning("engine %d lost its port to another process: trying another", spec.index)
        await server.stop()
        return await self._serve()

    async def _serve(self) -> EngineInfo:
        """Start the server and wait until it is healthy. Raises UserError."""
        spec, place = self._spec, self._place()
        env = environment(spec, os.environ, profile=needs_profile(spec.device))
        argv = command(spec, place, known=known_options())
        secrets = [*secrets_in(spec.engines.sglang_args), *filter(None, (spec.admin_key, spec.router_key))]
        self._server = server = ServerProcess.launch(argv, env=env, log_path=Path(spec.log_path), secrets=secrets)
        await server.wait_healthy(self._local_url(place.port), spec.engines.engine_start_timeout)
        return EngineInfo(
            url=f"http://{bracketed(reachable(spec.hosts.public_host))}:{place.port}",
            worker_type=spec.worker_type,
            bootstrap_port=place.bootstrap_port,
            pid=server.pid,
            weight_version=spec.weight_version,
            memory=memory(),
        )

    async def _prepare_updates(self) -> None:
        """Learn the served shapes, for the check of later updates, and make cache flushes cheap."""
        with contextlib.suppress(WeightsError):  # a model in another format, or the name of one on a hub
            self._shapes = read_shapes(Path(self._spec.model_path))
        try:
            await freeze_gc(**self._address())
        except EngineError as error:  # older servers lack it: updates then take longer
            logger.info("%r: %s", self, error)

    def _place(self) -> Placement:
        prefill = self._spec.worker_type == WorkerType.PREFILL
        return Placement(
            port=self._port("port"),
            bootstrap_port=self._port("disaggregation_bootstrap_port") if prefill else None,
            base_gpu_id=_first_gpu() if self._spec.device == "cuda" else None,
            dist_init_addr=self._meeting_address,
        )

    def _port(self, option: str) -> int:
        """The port the user asked for, plus this engine's index; else a free one."""
        given = self._spec.engines.sglang_args.get(option)
        if given is None:
            return self._ports.hold(self._spec.hosts.bind_host)
        flag = f"--sglang-{option.replace('_', '-')}"
        if not str(given).isdecimal():
            raise UserError(f"{flag} {given}: a port is a number")
        return require_free(self._spec.hosts.bind_host, int(str(given)) + self._spec.index, flag)

    def _own_url(self) -> str:
        """Where this actor reaches its server."""
        assert self._info is not None, "start comes first"
        return self._spec.external_url or self._local_url(int(self._info.url.rpartition(":")[2]))

    def _local_url(self, port: int) -> str:
        return f"http://{bracketed(local(self._spec.hosts.bind_host))}:{port}"

    def _headers(self) -> dict[str, str]:
        given = self._spec.engines.text
        return bearer(given("admin_api_key") or self._spec.admin_key or given("api_key"))


async def _never() -> str:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


def _first_gpu() -> int | None:
    """The first GPU that Ray gave this actor; None: all are visible and SGLang starts with the first."""
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return min(int(gpu) for gpu in assigned) if assigned else None
