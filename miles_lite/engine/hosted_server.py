"""The server of one engine on this node: started on ports of its own, or found where somebody else started it.

Invariant: a server that `start` returned has been healthy; after `stop` nothing of one that was started here is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

import ray

from miles_lite.config.choices import Device, WorkerType
from miles_lite.config.redaction import secrets_in
from miles_lite.engine import disaggregation
from miles_lite.engine.cpu_shim import needs_profile
from miles_lite.engine.launch import Placement, command, environment
from miles_lite.engine.ports import Ports, require_free
from miles_lite.engine.server_process import ServerProcess, wait_healthy
from miles_lite.engine.sglang_flags import known_options
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.errors import UserError
from miles_lite.process.addresses import bracketed, local, loopback, reachable
from miles_lite.process.admin_key import bearer
from miles_lite.weights.bucket import memory

logger = logging.getLogger(__name__)
MEETING_PORTS = 30
"""SGLang's ranks take ports above the one they meet at."""


class Address(TypedDict):
    """Where a server's own endpoints are, and what opens them."""

    url: str
    headers: dict[str, str]


class HostedServer:
    """One server. `process` is None for one that somebody else started."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._ports = Ports()
        self._meeting: str | None = None
        self._url: str | None = None
        self.process: ServerProcess | None = None

    @property
    def address(self) -> Address:
        """Of the server, once it is healthy and until it is stopped."""
        if self._url is None:
            raise RuntimeError(f"engine {self._spec.index} does not run")
        given = self._spec.engines.text
        return {"url": self._url, "headers": bearer(given("admin_api_key") or self._spec.admin_key or given("api_key"))}

    def rendezvous_address(self) -> str:
        """Where the servers of all nodes of this engine can meet, host:port; it and MEETING_PORTS above are held."""
        port = self._ports.reserve(self._spec.hosts.bind_host, consecutive=MEETING_PORTS)
        return f"{bracketed(reachable(self._spec.hosts.public_host))}:{port}"

    async def start(self, *, meeting: str | None) -> EngineInfo:
        """Launch it, or find it, and wait until it is healthy. Raises UserError."""
        self._meeting = meeting
        url = self._spec.external_url
        if url is None:
            return await self._launch()
        await wait_healthy(url, self._spec.engines.engine_start_timeout)
        self._url = url
        return EngineInfo(
            url=url,
            worker_type=WorkerType.REGULAR,
            bootstrap_port=None,
            pid=0,
            weight_version=self._spec.weight_version,
            memory=memory() if loopback(urlsplit(url).hostname or "") else None,
        )

    async def stop(self) -> None:
        """End what was started. Idempotent."""
        process, self.process, self._url = self.process, None, None
        if process:
            await process.stop()
        self._ports.release()

    async def _launch(self) -> EngineInfo:
        """Start the server; once more on another port when another process took the one that was chosen for it."""
        spec = self._spec
        if spec.worker_type != WorkerType.REGULAR and spec.device == "cpu" and (reason := disaggregation.missing()):
            raise UserError(f"engine {spec.index} is to {spec.worker_type}, but {reason}")
        try:
            return await self._serve()
        except UserError:
            server = self.process
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
        log = Path(spec.log_path)
        server = await asyncio.to_thread(ServerProcess.launch, argv, env=env, log_path=log, secrets=secrets)
        self.process = server
        url = f"http://{bracketed(local(spec.hosts.bind_host))}:{place.port}"
        await server.wait_healthy(url, spec.engines.engine_start_timeout)
        self._url = url
        return EngineInfo(
            url=f"http://{bracketed(reachable(spec.hosts.public_host))}:{place.port}",
            worker_type=spec.worker_type,
            bootstrap_port=place.bootstrap_port,
            pid=server.pid,
            weight_version=spec.weight_version,
            memory=memory(),
        )

    def _place(self) -> Placement:
        prefill = self._spec.worker_type == WorkerType.PREFILL
        return Placement(
            port=self._chosen_port("port"),
            bootstrap_port=self._chosen_port("disaggregation_bootstrap_port") if prefill else None,
            base_gpu_id=_first_gpu(self._spec.device),
            dist_init_addr=self._meeting,
        )

    def _chosen_port(self, option: str) -> int:
        """The port the user asked for, plus this engine's index; else a free one."""
        given = self._spec.engines.sglang_args.get(option)
        if given is None:
            return self._ports.reserve(self._spec.hosts.bind_host)
        flag = f"--sglang-{option.replace('_', '-')}"
        if not str(given).isdecimal():
            raise UserError(f"{flag} {given}: a port is a number")
        return require_free(self._spec.hosts.bind_host, int(str(given)) + self._spec.index, flag)


def _first_gpu(device: Device) -> int | None:
    """The first GPU that Ray gave this actor; None: all are visible and SGLang starts with the first."""
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", []) if device == "cuda" else []
    return min(int(gpu) for gpu in assigned) if assigned else None
