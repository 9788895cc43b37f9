"""Stack: what serves one model: the router, its engines and the session actors, kept alive together.

Invariant: a dead router or session server is replaced by one on the same port, engines are looked after by their fleet,
an actor of its own; `stop` ends it all within a bound, whatever state it is in. What a person must hear of it is in
`alarms`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import replace

import ray

from miles_lite.config.engines import WeightUpdates
from miles_lite.config.serving import Serving
from miles_lite.errors import plain, writing
from miles_lite.model_folder import check_model_folder, context_length
from miles_lite.process.admin_key import admin_key
from miles_lite.process.post_mortem import naming
from miles_lite.process.remote import Remote
from miles_lite.session.actor import SessionActor, SessionSpec
from miles_lite.stack.actors import Waiting, end_actor, named_actor, restarted
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import Layout, pinned, service_nodes
from miles_lite.stack.restarting import RestartingActor
from miles_lite.stack.routers import Routers, port_of
from miles_lite.stack.scraped import FILE, write_targets

log = logging.getLogger(__name__)

SERVICE_START_TIMEOUT = 60.0
FLEET = "the engines' fleet"


class Stack:
    """Starts, watches, updates and stops router, engines and sessions. Lives in one asyncio loop."""

    def __init__(
        self,
        options: Serving,
        layout: Layout,
        *,
        updates: WeightUpdates | None = None,
        known_key: str | None = None,
    ) -> None:
        """`updates`: how new weights will come, if they do. `known_key`: the admin key that the user's environment
        names; the flag's wins."""
        self._options = options
        self._model = check_model_folder(options.model.hf_checkpoint)
        self._context = context_length(self._model, options.context.rollout_max_context_len)
        self.admin_key = admin_key(options.hosts.bind_host, options.engines.text("admin_api_key"), known_key)
        self.alarms: list[str] = []
        self.waiting = Waiting(self.alarm, options.run_dir / "logs")
        here = pinned(ray.get_runtime_context().get_node_id())
        self.fleet = named_actor(Fleet, "engine-fleet", here)(
            options,
            layout,
            model=self._model,
            context_length=self._context,
            updates=updates,
            admin_key=self.admin_key,
            router_key=known_key if options.router_address.sglang_router_ip else self.admin_key,
        )
        self._hearing: asyncio.Task[None] | None = None
        self.engine_urls: list[str] = []
        """Of those that it started with."""
        self.routers = Routers(options, admin_key=self.admin_key, waiting=self.waiting)
        self.sessions: list[RestartingActor[SessionActor]] = []
        """The session servers; each has its URL as `address`."""

    @property
    def session_urls(self) -> list[str]:
        return [session.address for session in self.sessions]

    @property
    def failure(self) -> BaseException | None:
        """Why it serves no longer: the UserError of its fleet, or the DiedError that tells of the fleet's death."""
        if self._hearing is None or not self._hearing.done() or self._hearing.cancelled():
            return None
        error = self._hearing.exception()
        return None if error is None else plain(error)

    async def start(self) -> None:
        """Start everything; engines start together. Raises UserError when a part does not come up, DiedError when the
        fleet dies."""
        (self._options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        await self.routers.start()
        self._hearing = asyncio.create_task(self._hear())
        await asyncio.gather(self._start_sessions(), self._start_fleet())
        with writing("where its metrics are", self._options.run_dir / FILE):
            write_targets(self._options.run_dir, routers=self.routers.own, sessions=self.session_urls)

    def alarm(self, line: str) -> None:
        """Say it in the log, and to whoever looks at `alarms`."""
        log.warning("%s", line)
        self.alarms.append(line)

    async def session_stats(self) -> dict[str, float]:
        """Counters summed over the session actors. One that is being replaced does not count."""
        total: dict[str, float] = {}
        for stats in await asyncio.gather(*(_stats(session) for session in self.sessions)):
            for name, value in stats.items():
                total[name] = total.get(name, 0.0) + value
        return total

    async def stop(self) -> None:
        """Stop everything within a bound, whatever state it is in."""
        if self._hearing is not None:
            self._hearing.cancel()
        await asyncio.gather(end_actor(self.fleet), *(session.stop() for session in self.sessions))
        await self.routers.stop()

    async def _start_fleet(self) -> None:
        limit = self._options.engines.engine_start_timeout + 2 * SERVICE_START_TIMEOUT
        with naming(FLEET):
            starting = self.fleet.call(Fleet.start, self.routers.urls)
            self.engine_urls = await self.waiting.started(self.fleet, starting, FLEET, limit)

    async def _hear(self) -> None:
        """Pass on what the fleet says, for as long as it can go on."""
        heard = 0
        with naming(FLEET):
            while True:
                for line in await self.fleet.call(Fleet.new_lines, heard):
                    self.alarm(line)
                    heard += 1

    async def _start_sessions(self) -> None:
        options = self._options
        first_port = options.session.session_server_port
        alive = [str(node["NodeID"]) for node in ray.nodes() if node["Alive"]]
        nodes = service_nodes(options.hosts, here=ray.get_runtime_context().get_node_id(), alive=alive)
        routers = self.routers.data_urls
        for index in range(options.session_servers.num_session_servers):
            spec = SessionSpec(
                index=index,
                model_path=str(self._model),
                router_url=routers[index % len(routers)],
                context_length=self._context,
                options=options.session,
                hosts=options.hosts,
                routing=options.routing,
                engines=options.engines,
                port=None if first_port is None else first_port + index,
                secret=secrets.token_hex(32),
                admin_key=self.admin_key,
                run_dir=str(options.run_dir),
                otlp_endpoint=options.tracing.otlp_endpoint,
            )
            self.sessions.append(self._session(spec, nodes[index % len(nodes)]))
        await asyncio.gather(*(session.start() for session in self.sessions))

    def _session(self, spec: SessionSpec, node: str) -> RestartingActor[SessionActor]:
        """A session server; the next one on the port of the first, on its node and so with its journal."""

        def make(restarts: int) -> Remote[SessionActor]:
            port = port_of(kept.address) if restarts else spec.port
            name = restarted(f"session-{spec.index}", restarts)
            return named_actor(SessionActor, name, pinned(node))(replace(spec, port=port))

        what = f"session server {spec.index}"
        kept = RestartingActor(what, make, start_seconds=SERVICE_START_TIMEOUT, waiting=self.waiting)
        return kept


async def _stats(session: RestartingActor[SessionActor]) -> dict[str, float]:
    with contextlib.suppress(ray.exceptions.RayActorError):
        return await (await session.serving()).call(SessionActor.stats)
    return {}
