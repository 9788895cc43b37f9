"""Stack: what serves one model: the router, its engines and the session actors, kept alive together.

Invariant: a dead router is replaced by one on the same port, engines are looked after by their fleet; `stop` ends it
all within a bound, whatever state it is in.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from miles_lite.admin import admin_key
from miles_lite.engine.spec import EngineInfo
from miles_lite.engine.weights import WeightUpdate
from miles_lite.errors import UserError
from miles_lite.rollout.actors import end_actor, lives, named_actor, started
from miles_lite.rollout.fleet import Delivered, Fleet, Recovery
from miles_lite.rollout.model import check_model_folder, context_length
from miles_lite.rollout.options import StackOptions
from miles_lite.rollout.placement import Layout, pinned, service_nodes
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.session.actor import SessionActor, SessionSpec

log = logging.getLogger(__name__)

SERVICE_START_TIMEOUT = 60.0


class Stack:
    """Starts, watches, updates and stops router, engines and sessions. Lives in one asyncio loop."""

    def __init__(self, options: StackOptions, layout: Layout) -> None:
        self._options = options
        self._model = check_model_folder(options.checkpoint.hf_checkpoint)
        self._context = context_length(self._model, options.max_context_len)
        self.admin_key = admin_key(options.topology.bind_host, *options.given_keys)
        self._fleet = Fleet(
            options,
            layout,
            model=self._model,
            context_length=self._context,
            admin_key=self.admin_key,
            router_key=options.known_key if options.engines.sglang_router_ip else self.admin_key,
        )
        self._watcher: asyncio.Task[None] | None = None
        self._router: Any = None
        self._router_restarts = 0
        self._sessions: list[Any] = []
        self.router_url = ""
        self.data_url = ""
        self.session_urls: list[str] = []

    @property
    def model(self) -> Path:
        return self._model

    @property
    def context_length(self) -> int:
        return self._context

    @property
    def weight_version(self) -> int:
        return self._fleet.weight_version

    @property
    def engine_restarts(self) -> int:
        return self._fleet.restarts

    @property
    def recoveries(self) -> list[Recovery]:
        """Engines that were replaced so far."""
        return self._fleet.recoveries

    @property
    def engines(self) -> list[EngineInfo]:
        """Those that serve."""
        return self._fleet.engines

    @property
    def engine_urls(self) -> list[str]:
        return [engine.url for engine in self.engines]

    @property
    def failure(self) -> UserError | None:
        """Why no engine is left, once none is."""
        return self._fleet.failure

    async def start(self) -> None:
        """Start everything; engines start together. Raises UserError when a part does not come up."""
        (self._options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        self.router_url = await self._start_router()
        self.data_url = await self._router.data_url.remote() if self._router else self.router_url
        await asyncio.gather(self._start_sessions(), self._fleet.start(self.router_url))
        self._watcher = asyncio.create_task(self._watch_router())

    async def update_weights(self, update: WeightUpdate, sender: Any = None) -> Delivered:
        """Bring every engine to `update`; see Fleet.update_weights."""
        return await self._fleet.update_weights(update, sender)

    async def verify_weights(self) -> None:
        """Raises UserError when an engine serves something else than its folder holds."""
        await self._fleet.verify_weights()

    async def offload(self) -> None:
        """Free the engines' memory until `onload`."""
        await self._fleet.offload()

    async def onload(self) -> None:
        await self._fleet.onload()

    async def session_stats(self) -> dict[str, float]:
        """Counters summed over the session actors."""
        total: dict[str, float] = {}
        for stats in await asyncio.gather(*(actor.stats.remote() for actor in self._sessions)):
            for name, value in stats.items():
                total[name] = total.get(name, 0.0) + value
        return total

    async def stop(self) -> None:
        """Stop everything within a bound, whatever state it is in."""
        if self._watcher:
            self._watcher.cancel()
        await asyncio.gather(self._fleet.stop(), *(end_actor(actor) for actor in self._sessions))
        if self._router:
            await end_actor(self._router)

    async def _start_router(self) -> str:
        engines = self._options.engines
        if engines.sglang_router_ip:
            return f"http://{engines.sglang_router_ip}:{engines.sglang_router_port}"
        state = self._options.run_dir / "logs" / "router.json"
        state.unlink(missing_ok=True)
        return await self._launch_router(engines.sglang_router_port)

    async def _launch_router(self, port: int | None) -> str:
        engines = self._options.engines
        spec = RouterSpec.of(
            self._options.topology,
            engines,
            port=port,
            state_file=str(self._options.run_dir / "logs" / "router.json"),
            admin_key=self.admin_key,
            gateway_port=urlsplit(self.data_url).port if self.data_url and engines.router == "gateway" else None,
        )
        name = "router" + (f"-restart-{self._router_restarts}" if self._router_restarts else "")
        self._router = named_actor(RouterActor, name, num_cpus=0).remote(spec, gateway=engines.router == "gateway")
        url: str = await started(self._router, "the router", SERVICE_START_TIMEOUT)
        return url

    async def _watch_router(self) -> None:
        """Replace a router that has ended by another on its port, which knows the workers from the state file."""
        while self._router is not None:
            await asyncio.sleep(self._options.engines.engine_health_interval)
            if not await lives(self._router):
                self._router_restarts += 1
                log.warning(
                    "the router at %s has ended; replacing it (%d so far)", self.router_url, self._router_restarts
                )
                await end_actor(self._router)
                try:
                    self.router_url = await self._launch_router(urlsplit(self.router_url).port)
                except (UserError, ray.exceptions.RayError) as error:
                    log.error("the router does not come back, and is tried again: %s", error)

    async def _start_sessions(self) -> None:
        options = self._options
        first_port = options.session.session_server_port
        alive = [str(node["NodeID"]) for node in ray.nodes() if node["Alive"]]
        nodes = service_nodes(options.topology, here=ray.get_runtime_context().get_node_id(), alive=alive)
        for index in range(options.session.num_session_servers):
            spec = SessionSpec(
                index=index,
                model_path=str(self._model),
                router_url=self.data_url,
                bind_host=options.topology.bind_host,
                advertise_host=options.topology.public_host,
                port=None if first_port is None else first_port + index,
                admin_key=self.admin_key,
                options=options.session,
                context_length=self._context,
                call_seconds=options.engines.router_timeout,
                run_dir=str(options.run_dir),
                routed_experts=bool(options.engines.sglang_args.get("enable_return_routed_experts")),
                reasoning_parser=options.engines.sglang_args.get("reasoning_parser"),
                tool_call_parser=options.engines.sglang_args.get("tool_call_parser"),
            )
            placed = pinned(nodes[index % len(nodes)])
            self._sessions.append(named_actor(SessionActor, f"session-{index}", **placed).remote(spec))
        starts = (started(actor, "a session server", SERVICE_START_TIMEOUT) for actor in self._sessions)
        self.session_urls = list(await asyncio.gather(*starts))
