"""`miles-lite serve` and `miles-lite router`: the serving parts alone, until Ctrl-C.

Invariant: what is printed as ready answers; Ctrl-C or SIGTERM ends everything that was started, within seconds, also
before it is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from miles_lite.config.flags import Parser, add_group, option, sort_leftovers, take_group
from miles_lite.config.options import SERVED, Checkpoint, Engines, Logging, Session, Topology
from miles_lite.job.claim import claimed
from miles_lite.process.admin_key import admin_key, announced, known_key
from miles_lite.process.stopping import Interrupts, stop_requested
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor
from miles_lite.stack.cluster import connect, disconnect
from miles_lite.stack.engine_plans import in_words, plan_engines
from miles_lite.stack.placement import Layout, place
from miles_lite.stack.serving_options import StackOptions
from miles_lite.stack.stack import Stack


@dataclass(frozen=True, kw_only=True)
class Serving:
    """serving: limits and seed of the engines."""

    rollout_max_context_len: int | None = option(
        None, help="the engine's context length in tokens", least=2, aka=("--sglang-context-length",)
    )
    seed: int = option(1234, help="seed of the engines", least=0, most=2**31 - 1, aka=("--sglang-random-seed",))


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """router: its port, and what it keeps."""

    port: int | None = option(None, help="port (default: a free one)", least=1, most=65535)
    state_file: str | None = option(None, help="keep the workers in this file for the next start", path=True)


HOSTS = ("bind_host", "advertise_host")
ROUTING = ("sglang_server_concurrency", "router", "router_policy", "router_timeout", "router_queue_seconds")
"""The flags of a run that `miles-lite router` has too."""


def serve(argv: Sequence[str]) -> int:
    """Engines, router and session servers of one model, until Ctrl-C. Raises UserError."""
    parser = Parser(prog="miles-lite serve", allow_abbrev=False)
    for group in (Topology, Checkpoint, Session, Engines, Serving, Logging):
        add_group(parser, group, only=SERVED.get(group, ()))
    namespace, unknown = parser.parse_known_args(list(argv))
    leftovers = sort_leftovers(parser, unknown)
    leftovers.show_ignored()
    serving, logging = take_group(namespace, Serving), take_group(namespace, Logging)
    options = StackOptions.taken(
        namespace,
        leftovers,
        max_context_len=serving.rollout_max_context_len,
        seed=serving.seed,
        run_dir=logging.path,
    )
    with claimed(logging.path):
        connect(logging.ray_address)
        try:
            with Interrupts():
                layout = place(options.topology, train=False)
            asyncio.run(_until_interrupted(options, layout))
        finally:
            disconnect()
    return 0


async def _until_interrupted(options: StackOptions, layout: Layout) -> None:
    """Raises KeyboardInterrupt when it ends before anything is ready, UserError when no engine is left."""
    stop = stop_requested()
    stack = Stack(options, layout)
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(stack.start())
    print(f"{in_words(plan_engines(options.topology, options.engines))}; logs: {options.run_dir / 'logs'}", flush=True)
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            raise KeyboardInterrupt
        await starting
        _announce(stack, options)
        while not stop.is_set():
            if stack.fleet.failure is not None:
                raise stack.fleet.failure
            await asyncio.wait({stopping}, timeout=1.0)
    finally:
        starting.cancel()
        stopping.cancel()
        await stack.stop()


def _announce(stack: Stack, options: StackOptions) -> None:
    print(f"router    {stack.router_url}")
    for url in stack.session_urls:
        print(f"sessions  {url}    POST {url}/sessions, then OpenAI chat at /sessions/ID/v1")
    for url in stack.fleet.urls:
        print(f"engine    {url}")
    print(announced(stack.admin_key, *options.given_keys), end="")
    print("ready; Ctrl-C ends it", flush=True)


def router(argv: Sequence[str]) -> int:
    """The router alone, until Ctrl-C. Raises UserError."""
    parser = Parser(prog="miles-lite router", allow_abbrev=False)
    add_group(parser, RouterOptions)
    add_group(parser, Topology, only=HOSTS, title="network: who reaches it")
    add_group(parser, Engines, only=ROUTING, title="requests: who takes them, how long they wait")
    namespace = parser.parse_args(list(argv))
    options, engines = take_group(namespace, RouterOptions), take_group(namespace, Engines)
    topology = take_group(namespace, Topology)
    key = admin_key(topology.bind_host, known_key())
    spec = RouterSpec.of(topology, engines, port=options.port, state_file=options.state_file, admin_key=key)
    print(announced(key, known_key()), end="", flush=True)
    asyncio.run(_route(Supervisor(spec, gateway=engines.router == "gateway")))
    return 0


async def _route(supervisor: Supervisor) -> None:
    stop = stop_requested()
    try:
        url = await supervisor.start()
        told = f", and the gateway for generation: {supervisor.data_url}" if supervisor.data_url != url else ""
        print(f"router: {url}{told}", flush=True)
        await stop.wait()
    finally:
        await supervisor.stop()
