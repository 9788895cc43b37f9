"""The routers of a stack: those that it starts, each in front of all engines, or the one that runs elsewhere.

Invariant: a router that died is replaced on the same ports, and knows the engines from its state file; the others go
on meanwhile. All of them together give an engine at most --sglang-server-concurrency requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import urlsplit

from miles_lite.config.choices import RouterKind
from miles_lite.config.serving import Serving
from miles_lite.process.remote import Remote
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.stack.actors import Waiting, named_actor, restarted
from miles_lite.stack.restarting import RestartingActor

START_SECONDS = 60.0


class Routers:
    """`start` first. `urls` are where they are told of engines, `data_urls` where generation requests go, both by
    index."""

    def __init__(self, options: Serving, *, admin_key: str | None, waiting: Waiting) -> None:
        self._options, self._admin_key, self._waiting = options, admin_key, waiting
        self._kept: list[RestartingActor[RouterActor]] = []
        self.urls: list[str] = []
        self.data_urls: list[str] = []

    def of(self, index: int) -> str:
        """That which the rollout with this number has, where its agent speaks to a router itself."""
        return self.urls[index % len(self.urls)]

    async def start(self) -> None:
        """Raises UserError when one does not come up."""
        address = self._options.router_address
        if address.sglang_router_ip:
            self.urls = self.data_urls = [f"http://{address.sglang_router_ip}:{address.sglang_router_port}"]
            return
        self._kept = [self._router(index) for index in range(address.num_routers)]
        self.urls = list(await asyncio.gather(*(kept.start() for kept in self._kept)))
        asked = [(await kept.serving()).call(RouterActor.data_url) for kept in self._kept]
        self.data_urls = list(await asyncio.gather(*asked))

    @property
    def own(self) -> list[str]:
        """The URLs of those that were started."""
        return self.urls if self._kept else []

    async def stop(self) -> None:
        """End those that were started."""
        await asyncio.gather(*(kept.stop() for kept in self._kept))

    def _router(self, index: int) -> RestartingActor[RouterActor]:
        options, address = self._options, self._options.router_address
        alone = address.num_routers == 1
        name, what = ("router", "the router") if alone else (f"router-{index}", f"router {index}")
        state_file = options.run_dir / "logs" / f"{name}.json"
        state_file.unlink(missing_ok=True)
        share = max(1, options.routing.sglang_server_concurrency // address.num_routers)
        first_port = address.sglang_router_port
        spec = RouterSpec(
            hosts=options.hosts,
            routing=replace(options.routing, sglang_server_concurrency=share),
            port=None if first_port is None else first_port + index,
            state_file=str(state_file),
            admin_key=self._admin_key,
        )

        def make(restarts: int) -> Remote[RouterActor]:
            gateway = options.routing.router == RouterKind.GATEWAY
            placed = spec
            if restarts:
                data_port = port_of(self.data_urls[index]) if gateway else None
                placed = replace(spec, port=port_of(self.urls[index]), gateway_port=data_port)
            return named_actor(RouterActor, restarted(name, restarts))(placed)

        return RestartingActor(what, make, start_seconds=START_SECONDS, waiting=self._waiting)


def port_of(url: str) -> int | None:
    return urlsplit(url).port
