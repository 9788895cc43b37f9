"""Stack: what serves one model: the router, its engines and the session actors, kept alive together.

Invariant: an engine that is registered with the router serves the current weight version, and the router lets no other
one serve. A dead engine is replaced by one that starts from the current weights, a dead router by one on the same port;
weight updates and replacements exclude each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from miles_lite.config import Checkpoint, Engines, Session, Topology
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.environment import actor_env
from miles_lite.engine.spec import EngineInfo, EngineSpec, WorkerType
from miles_lite.engine.weights import WeightUpdate
from miles_lite.errors import UserError
from miles_lite.rollout.model import check_model_folder, context_length
from miles_lite.rollout.placement import ENGINE_SHARE, Layout, pinned, service_nodes
from miles_lite.router.actor import RouterActor
from miles_lite.router.client import set_weight_version
from miles_lite.router.spec import RouterSpec
from miles_lite.session.actor import SessionActor, SessionSpec

log = logging.getLogger(__name__)

STOP_TIMEOUT = 6.0
SERVICE_START_TIMEOUT = 60.0


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """The option groups a stack needs."""

    topology: Topology
    checkpoint: Checkpoint
    engines: Engines
    session: Session
    max_context_len: int | None
    seed: int
    run_dir: Path


@dataclass
class _Slot:
    """One engine's place: the actor that fills it now, and how often it was replaced."""

    index: int
    actor: Any = None
    info: EngineInfo | None = None
    restarts: int = 0


class Stack:
    """Starts, watches, updates and stops router, engines and sessions. Lives in one asyncio loop."""

    def __init__(self, options: StackOptions, layout: Layout) -> None:
        self._options = options
        self._layout = layout
        self._model = check_model_folder(options.checkpoint.hf_checkpoint)
        self._context = context_length(self._model, options.max_context_len)
        self._slots = [_Slot(index) for index in range(options.topology.num_engines)]
        self._weights = WeightUpdate(str(self._model), 0, options.engines.pause_generation_mode)
        self._changing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._router: Any = None
        self._router_restarts = 0
        self._sessions: list[Any] = []
        self.router_url = ""
        self.data_url = ""
        self.session_urls: list[str] = []
        self.failure: UserError | None = None

    @property
    def model(self) -> Path:
        return self._model

    @property
    def context_length(self) -> int:
        return self._context

    @property
    def weight_version(self) -> int:
        return self._weights.version

    @property
    def engine_restarts(self) -> int:
        return sum(slot.restarts for slot in self._slots)

    @property
    def engine_urls(self) -> list[str]:
        return [slot.info.url for slot in self._slots if slot.info]

    async def start(self) -> None:
        """Start everything; engines start together. Raises UserError when a part does not come up."""
        (self._options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        self.router_url = await self._start_router()
        self.data_url = await self._router.data_url.remote() if self._router else self.router_url
        await asyncio.gather(self._start_sessions(), *(self._fill(slot) for slot in self._slots))
        self._watcher = asyncio.create_task(self._watch())

    async def update_weights(self, path: str, version: int) -> float:
        """Bring every engine to `version`, stored as a Hugging Face folder at `path`. Returns seconds, pause included.

        An engine that refuses is replaced by one that starts from the new weights.
        """
        async with self._changing:
            began, before = time.perf_counter(), self._weights.version
            self._weights = WeightUpdate(path, version, self._options.engines.pause_generation_mode)
            await set_weight_version(self.router_url, version, previous=before)
            await asyncio.gather(*(self._update(slot) for slot in self._slots))
            for url in await set_weight_version(self.router_url, version):
                log.warning("engine %s does not have weight version %d: it gets no requests", url, version)
            return time.perf_counter() - began

    async def session_load(self) -> list[int]:
        """Live sessions per session actor."""
        return list(await asyncio.gather(*(actor.load.remote() for actor in self._sessions)))

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
        engines = [slot.actor for slot in self._slots if slot.actor]
        await asyncio.gather(*(end_actor(actor) for actor in [*engines, *self._sessions]))
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
        engines, topology = self._options.engines, self._options.topology
        spec = RouterSpec(
            bind_host=topology.bind_host,
            advertise_host=topology.public_host,
            port=port,
            timeout=engines.router_timeout,
            policy=engines.router_policy,
            concurrency=engines.sglang_server_concurrency,
            queue_seconds=engines.router_queue_seconds,
            state_file=str(self._options.run_dir / "logs" / "router.json"),
            gateway_port=urlsplit(self.data_url).port if self.data_url and engines.router == "gateway" else None,
        )
        name = "router" + (f"-restart-{self._router_restarts}" if self._router_restarts else "")
        self._router = named_actor(RouterActor, name, num_cpus=0).remote(spec, gateway=engines.router == "gateway")
        url: str = await started(self._router, "the router", SERVICE_START_TIMEOUT)
        return url

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

    def _engine_spec(self, slot: _Slot) -> EngineSpec:
        options = self._options
        device = self._layout.device
        cores = os.cpu_count() or 1
        return EngineSpec(
            index=slot.index,
            model_path=self._weights.path,
            device=device,
            bind_host=options.topology.bind_host,
            advertise_host=options.topology.public_host,
            router_url=self.router_url,
            log_path=str(options.run_dir / "logs" / f"engine-{slot.index}.{slot.restarts}.log"),
            worker_type=self._role(slot.index),
            start_timeout=options.engines.engine_start_timeout,
            seed=options.seed,
            slots=options.topology.rollout_num_gpus_per_engine if device == "cuda" else 1,
            weight_version=self._weights.version,
            context_length=self._context,
            threads=max(1, cores // (2 * len(self._slots))),
            max_concurrency=options.engines.sglang_server_concurrency,
            sglang_args={"tokenizer_path": str(self._model), **options.engines.sglang_args},
        )

    def _role(self, index: int) -> WorkerType:
        prefill = self._options.engines.prefill_num_servers
        return "regular" if not prefill else "prefill" if index < prefill else "decode"

    async def _fill(self, slot: _Slot) -> None:
        """Start an engine in `slot` from the current weights."""
        bundle = self._layout.engine_bundles[slot.index]
        name = f"engine-{slot.index}" + (f"-restart-{slot.restarts}" if slot.restarts else "")
        actor_class = named_actor(
            EngineActor, name, gpu=self._layout.device == "cuda", **self._layout.options(bundle, ENGINE_SHARE)
        )
        slot.actor = actor_class.remote(self._engine_spec(slot))
        timeout = self._options.engines.engine_start_timeout + 30
        slot.info = await started(slot.actor, f"engine {slot.index}", timeout)

    async def _update(self, slot: _Slot) -> None:
        if slot.info is None or slot.actor is None:
            return
        try:
            await slot.actor.update_weights.remote(self._weights)
        except Exception as error:  # noqa: BLE001 - whatever ails the engine, a fresh one has the new weights
            log.warning("engine %d did not take weight version %d: %s", slot.index, self._weights.version, error)
            await self._replace(slot)

    async def _watch(self) -> None:
        """Replace engines whose process has ended, and the router."""
        while True:
            await asyncio.sleep(self._options.engines.engine_health_interval)
            if self._router is not None and not await _lives(self._router):
                await self._replace_router()
            for slot in self._slots:
                if slot.info is not None and not await _lives(slot.actor):
                    async with self._changing:
                        await self._replace(slot)

    async def _replace_router(self) -> None:
        """Another router on the same port; it knows the workers from the state file."""
        self._router_restarts += 1
        log.warning("the router at %s has ended; replacing it (%d so far)", self.router_url, self._router_restarts)
        await end_actor(self._router)
        try:
            self.router_url = await self._launch_router(urlsplit(self.router_url).port)
        except (UserError, ray.exceptions.RayError) as error:
            log.error("the router does not come back, and is tried again: %s", error)

    async def _replace(self, slot: _Slot) -> None:
        log.warning("engine %d has ended; replacing it (%d so far)", slot.index, slot.restarts)
        slot.info = None
        if slot.actor:
            await end_actor(slot.actor)
        limit = self._options.engines.engine_restarts
        while slot.info is None and slot.restarts < limit:
            slot.restarts += 1
            try:
                await self._fill(slot)
            except UserError as error:
                log.warning("engine %d, restart %d of %d: %s", slot.index, slot.restarts, limit, error)
                self.failure = error
        if slot.info is not None:
            self.failure = None
        elif any(other.info for other in self._slots):
            self.failure = None
            log.error("engine %d is given up after %d restarts; the others go on", slot.index, limit)
        else:
            self.failure = self.failure or UserError(
                f"no engine is left: engine {slot.index} ended and --engine-restarts {limit} are used up. "
                f"See {self._options.run_dir / 'logs'}."
            )


def named_actor(actor_class: type, name: str, *, gpu: bool = False, **options: Any) -> Any:
    """`actor_class` as a Ray actor with a name in the dashboard and the driver's environment; call `.remote(...)`."""
    runtime_env = {"env_vars": actor_env(gpu=gpu)}
    return ray.remote(actor_class).options(name=name, runtime_env=runtime_env, **options)


async def started(actor: Any, what: str, timeout: float) -> Any:
    try:
        return await asyncio.wait_for(actor.start.remote(), timeout)
    except TimeoutError:
        raise UserError(
            f"{what} did not start within {timeout:.0f} s; see Ray's dashboard and the logs folder"
        ) from None


async def _lives(actor: Any) -> bool:
    if actor is None:
        return False
    try:
        return bool(await asyncio.wait_for(actor.alive.remote(), STOP_TIMEOUT))
    except (ray.exceptions.RayActorError, TimeoutError):
        return False


async def end_actor(actor: Any) -> None:
    """Stop an actor politely, then for good."""
    with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
        await asyncio.wait_for(actor.stop.remote(), STOP_TIMEOUT)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor)
