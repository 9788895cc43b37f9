"""`EngineActor`: the Ray actor that owns one SGLang server.

Invariant: a registered engine is healthy; after `stop`, or when the actor dies in any way, no process of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import aiohttp
import ray

from miles_lite.engine import disaggregation
from miles_lite.engine.checkpoint import Shapes, WeightsError, check_fits, read_shapes
from miles_lite.engine.launch import Placement, command, environment
from miles_lite.engine.process import ServerProcess, free_port, require_free
from miles_lite.engine.profile import needs_profile
from miles_lite.engine.sglang_flags import known_options
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.engine.weights import EngineError, WeightUpdate, freeze_gc, update_from_disk
from miles_lite.errors import UserError
from miles_lite.net import bracketed, reachable

logger = logging.getLogger(__name__)
ROUTER_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class EngineActor:
    """One SGLang server. Callers wrap it: `ray.remote(EngineActor).options(...).remote(spec)`."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._server: ServerProcess | None = None
        self._info: EngineInfo | None = None
        self._updating = asyncio.Lock()
        self._shapes: Shapes = {}

    def __repr__(self) -> str:
        where = self._info.url if self._info else "not started"
        return f"EngineActor({self._spec.index}, {self._spec.worker_type}, {where})"

    async def start(self) -> EngineInfo:
        """Launch, wait until healthy, register. Raises UserError when any of it fails; then nothing is left running."""
        if self._info is not None:
            return self._info
        try:
            self._info = await self._launch()
            await self._prepare_updates(self._info)
            if self._spec.router_url:
                await self._register(self._info)
        except BaseException:
            await self.stop()
            raise
        return self._info

    async def alive(self) -> bool:
        """True while the server's process lives."""
        return self._server is not None and self._server.exit_code is None

    async def update_weights(self, update: WeightUpdate) -> float:
        """Load a folder's weights into the running server; returns seconds, pause included.

        Raises WeightsError when the folder does not fit the model, EngineError with the server's words when it refuses;
        the old weights are then still served under their version.
        """
        if self._info is None:
            raise RuntimeError(f"{self!r}: weights cannot be updated before start")
        async with self._updating:
            check_fits(Path(update.path), self._shapes)
            return await update_from_disk(update, url=self._local_url(self._info), headers=self._headers())

    async def stop(self) -> None:
        """Deregister and end the server. Idempotent."""
        info, server = self._info, self._server
        self._info = self._server = None
        if info and self._spec.router_url:
            await self._deregister(info)
        if server:
            await server.stop()

    async def _launch(self) -> EngineInfo:
        """Start the server; when another process took its port in between, once more on another port."""
        spec, chosen = self._spec, "port" in self._spec.sglang_args
        if spec.worker_type != "regular" and spec.device == "cpu" and (reason := disaggregation.missing()):
            raise UserError(f"engine {spec.index} is to {spec.worker_type}, but {reason}")
        env = environment(spec, os.environ, profile=needs_profile(spec.device))
        for last in (chosen, True):
            place = self._place()
            argv = command(spec, place, known=known_options())
            self._server = ServerProcess.launch(argv, env=env, log_path=Path(spec.log_path))
            info = EngineInfo(
                url=f"http://{bracketed(reachable(spec.advertise_host))}:{place.port}",
                worker_type=spec.worker_type,
                bootstrap_port=place.bootstrap_port,
                pid=self._server.pid,
                weight_version=spec.weight_version,
            )
            try:
                await self._server.wait_healthy(self._local_url(info), spec.start_timeout)
            except UserError:
                if last or not self._server.lost_port():
                    raise
                logger.warning("engine %d lost its port %d to another process: trying another", spec.index, place.port)
                await self._server.stop()
            else:
                return info
        raise AssertionError("the last attempt returns or raises")

    async def _prepare_updates(self, info: EngineInfo) -> None:
        """Learn the served shapes, for the check of later updates, and make cache flushes cheap."""
        with contextlib.suppress(WeightsError):  # a model in another format, or the name of one on a hub
            self._shapes = read_shapes(Path(self._spec.model_path))
        try:
            await freeze_gc(url=self._local_url(info), headers=self._headers())
        except EngineError as error:  # older servers lack it: updates then take longer
            logger.info("%r: %s", self, error)

    def _place(self) -> Placement:
        prefill = self._spec.worker_type == "prefill"
        return Placement(
            port=self._port("port"),
            bootstrap_port=self._port("disaggregation_bootstrap_port") if prefill else None,
            base_gpu_id=_first_gpu() if self._spec.device == "cuda" else None,
        )

    def _port(self, option: str) -> int:
        """The port the user asked for, plus this engine's index; else a free one."""
        given = self._spec.sglang_args.get(option)
        if given is None:
            return free_port(self._spec.bind_host)
        flag = f"--sglang-{option.replace('_', '-')}"
        if not str(given).isdecimal():
            raise UserError(f"{flag} {given}: a port is a number")
        return require_free(self._spec.bind_host, int(given) + self._spec.index, flag)

    def _local_url(self, info: EngineInfo) -> str:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        host = everywhere.get(self._spec.bind_host, self._spec.bind_host)
        return f"http://{bracketed(host)}:{info.url.rsplit(':', 1)[1]}"

    def _headers(self) -> dict[str, str]:
        arguments = self._spec.sglang_args
        key = arguments.get("admin_api_key") or arguments.get("api_key")
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def _register(self, info: EngineInfo) -> None:
        query = {"url": info.url, "worker_type": info.worker_type}
        if info.bootstrap_port is not None:
            query["bootstrap_port"] = str(info.bootstrap_port)
        try:
            await _post(f"{self._spec.router_url}/add_worker", query)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UserError(
                f"engine {self._spec.index} is healthy but the router at {self._spec.router_url} did not accept it: "
                f"{error}.\n  Check --sglang-router-ip and --sglang-router-port, or leave them out: one is started."
            ) from error

    async def _deregister(self, info: EngineInfo) -> None:
        try:
            await _post(f"{self._spec.router_url}/remove_worker", {"url": info.url})
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%r: could not deregister from %s: %s", self, self._spec.router_url, error)


async def _post(url: str, query: dict[str, str]) -> None:
    async with aiohttp.ClientSession(timeout=ROUTER_TIMEOUT) as session, session.post(url, params=query) as reply:
        if reply.status != 200:
            message = (await reply.text()).strip()
            raise aiohttp.ClientError(f"{url} answered {reply.status}: {message}")


def _first_gpu() -> int | None:
    """The first GPU that Ray gave this actor; None: all are visible and SGLang starts with the first."""
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return min(int(gpu) for gpu in assigned) if assigned else None
