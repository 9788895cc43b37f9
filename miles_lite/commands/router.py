"""`miles-lite router`: the router alone, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from miles_lite.config.engines import Routing
from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.config.places import Hosts
from miles_lite.process.admin_key import admin_key, announced, known_key
from miles_lite.process.stopping import stop_requested
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """router alone: its port, and what it keeps."""

    hosts: Hosts
    routing: Routing
    port: int | None = option(None, help="port (default: a free one)", least=1, most=65535)
    state_file: str | None = option(None, help="keep the workers in this file for the next start", path=True)


def main(argv: Sequence[str]) -> int:
    """Parse flags and route; the exit code. Raises UserError."""
    parser = parser_of(RouterOptions, prog="miles-lite router")
    options = take(parser.parse_args(list(argv)), RouterOptions)
    key = admin_key(options.hosts.bind_host, known_key())
    spec = RouterSpec(
        hosts=options.hosts,
        routing=options.routing,
        port=options.port,
        state_file=options.state_file,
        admin_key=key,
    )
    print(announced(key, known_key()), end="", flush=True)
    asyncio.run(_route(Supervisor(spec)))
    return 0


async def _route(supervisor: Supervisor) -> None:
    stop = stop_requested()
    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(supervisor.stop)
        url = await supervisor.start()
        told = f", and the gateway for generation: {supervisor.data_url}" if supervisor.data_url != url else ""
        print(f"router: {url}{told}", flush=True)
        await stop.wait()
