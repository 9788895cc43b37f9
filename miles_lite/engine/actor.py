"""`EngineActor`: the Ray actor that owns one SGLang server.

Invariant: a registered engine is healthy; after `stop`, or when the actor dies in any way, no process of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

import aiohttp

from miles_lite.engine.announce import deregister, register
from miles_lite.engine.features import check, probe
from miles_lite.engine.hosted_server import HostedServer
from miles_lite.engine.liveness import Liveness
from miles_lite.engine.reported_load import Load, fetch_load
from miles_lite.engine.server_process import ServerProcess
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.process.addresses import actor_label
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.receiver import ReceivingActor

logger = logging.getLogger(__name__)


class EngineActor(ReceivingActor):
    """One SGLang server. Callers wrap it: `ray.remote(EngineActor).options(...).remote(spec)`."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(WeightUpdate(spec.model_path, spec.weight_version))
        self._spec = spec
        self._server = HostedServer(spec)
        self._info: EngineInfo | None = None
        self._registered = False

    def __repr__(self) -> str:
        return actor_label("EngineActor", self._spec.index, self._spec.worker_type)

    def _open(self) -> aiohttp.ClientSession:
        address = self._server.address
        return aiohttp.ClientSession(address["url"], headers=address["headers"])

    async def rendezvous_address(self) -> str:
        """The first node of several: where all nodes' servers meet, host:port."""
        return self._server.rendezvous_address()

    async def start(self, *, register: bool = True, meeting: str | None = None) -> EngineInfo:
        """Launch, wait until healthy, register. Raises UserError when any of it fails; then nothing is left running.

        Without `register`, the router does not hear of it before `register` is called. `meeting` is where the nodes of
        an engine that spans several meet, as its first node's `rendezvous_address` said.
        """
        if self._info is not None:
            return self._info
        async with contextlib.AsyncExitStack() as failing:
            failing.push_async_callback(self.stop)
            info = self._info = await self._server.start(meeting=meeting)
            if self._spec.node_rank == 0:  # the others answer no requests
                features = await probe(**self._server.address)
                check(features, self._spec)
                info = self._info = dataclasses.replace(info, ranks=features.ranks(otherwise=self._spec.slots))
                await self._prepare_updates()
                if register:
                    await self.register()
            failing.pop_all()
            return info

    async def register(self) -> None:
        """Tell every router. Raises UserError when one refuses."""
        info, key = self._info, self._spec.router_key
        assert info is not None, "start comes first"
        self._registered = True
        await asyncio.gather(*(register(info, router_url=url, key=key) for url in self._spec.router_urls))

    async def alive(self) -> bool:
        """True while the server's process lives."""
        process = self._server.process
        return process is not None and process.exit_code is None

    async def load(self) -> Load | None:
        """What the server bears, with which weights; None where it does not say."""
        told = await fetch_load(**self._server.address)
        return None if told is None else dataclasses.replace(told, version=self._served.version)

    async def watch(self) -> str:
        """Return, with the reason, as soon as the server has ended or hangs; what hangs is killed."""
        assert self._info is not None, "start comes first"
        process = self._server.process
        ended = asyncio.create_task(process.wait() if process else _never())
        first = self._spec.node_rank == 0  # only the first node of several can be asked
        hanging = asyncio.create_task(self._hangs(process) if first else _never())
        with contextlib.ExitStack() as ending:
            ending.callback(ended.cancel)
            ending.callback(hanging.cancel)
            await asyncio.wait({ended, hanging}, return_when=asyncio.FIRST_COMPLETED)
            return "its process has ended" if ended.done() else hanging.result()

    async def _hangs(self, process: ServerProcess | None) -> str:
        """Probe again and again; what is seen while an update pauses the server does not count."""
        options, url = self._spec.engines, self._server.address["url"]
        pid = process.pid if process else None
        liveness = Liveness(pid, url, timeout=options.engine_health_timeout, patience=options.engine_hang_timeout)
        while True:
            await asyncio.sleep(options.engine_health_interval)
            updates = self._updates
            reason = None if self._updating.locked() else await liveness.probe()
            if self._updating.locked() or self._updates != updates:
                liveness.rest()
            elif reason is not None:
                if process is not None:
                    await asyncio.to_thread(process.write_stacks)
                    process.kill()
                return reason

    async def stop(self) -> None:
        """Deregister and end the server. Idempotent."""
        info, self._info = self._info, None
        if info and self._registered:
            await asyncio.gather(*(self._deregister(info, url) for url in self._spec.router_urls))
        await self._server.stop()

    async def _deregister(self, info: EngineInfo, router_url: str) -> None:
        try:
            await deregister(info.url, router_url=router_url, key=self._spec.router_key)
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%r: could not deregister from %s: %s", self, router_url, error)


async def _never() -> str:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
