"""`miles-lite session`: one session server in front of a router that runs, until Ctrl-C.

Invariant: no Ray and no SGLang; what is printed answers, and Ctrl-C or SIGTERM ends it, journal closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.engines import Engines, Routing
from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.model import Context, Model
from miles_lite.config.option import again, option
from miles_lite.config.places import Hosts, RunFolder
from miles_lite.config.session_options import Session
from miles_lite.config.tracking import Tracing
from miles_lite.errors import UserError
from miles_lite.model_folder import context_length
from miles_lite.process.admin_key import admin_key, announced, known_key
from miles_lite.process.stopping import stop_requested
from miles_lite.session.server import SessionSpec
from miles_lite.session.supervised_server import Supervisor


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """session server: where its engines are, and its journal."""

    hosts: Hosts
    model: Model
    context: Context
    session: Session
    tracing: Tracing
    router_url: str = option(help="router, or a single engine: where /generate is")
    router_timeout: float = again(Routing, "router_timeout", help="seconds to wait for an engine's answer")
    run_dir: str = again(RunFolder, "run_dir", default="runs/session", help="folder of the journal")


OF_SGLANG = ("enable_return_routed_experts", "reasoning_parser", "tool_call_parser")
"""What a session server must know of how its engines were started."""


def main(argv: Sequence[str]) -> int:
    """Parse flags and serve; the exit code. Raises UserError."""
    options, leftovers = parse_known(parser_of(SessionOptions, prog="miles-lite session"), argv, SessionOptions)
    leftovers.show_ignored()
    if without := [f"--sglang-{name.replace('_', '-')}" for name in leftovers.sglang if name not in OF_SGLANG]:
        known = ", ".join(f"--sglang-{name.replace('_', '-')}" for name in OF_SGLANG)
        raise UserError(f"{', '.join(without)}: no engine is started here; of SGLang's flags there are {known}")
    model = Path(options.model.hf_checkpoint)
    spec = SessionSpec(
        index=0,
        model_path=str(model.resolve()),
        router_url=options.router_url,
        context_length=context_length(model, options.context.rollout_max_context_len),
        options=options.session,
        hosts=options.hosts,
        routing=Routing(router_timeout=options.router_timeout),
        engines=Engines(sglang_args=leftovers.sglang),
        port=options.session.session_server_port,
        run_dir=str(Path(options.run_dir).resolve()),
        admin_key=admin_key(options.hosts.bind_host, known_key()),
        otlp_endpoint=options.tracing.otlp_endpoint,
    )
    asyncio.run(_serve(Supervisor(spec)))
    return 0


async def _serve(supervisor: Supervisor) -> None:
    stop = stop_requested()
    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(supervisor.stop)
        url = await supervisor.start()
        print(announced(supervisor.spec.admin_key, known_key()), end="")
        print(f"sessions: {url}    POST {url}/sessions, then OpenAI chat at /sessions/ID/v1", flush=True)
        await stop.wait()
