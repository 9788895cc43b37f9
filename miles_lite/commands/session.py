"""`miles-lite session`: one session server in front of a router that runs, until Ctrl-C.

Invariant: no Ray and no SGLang; what is printed answers, and Ctrl-C or SIGTERM ends it, journal closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import Parser, add_group, option, sort_leftovers, take_group
from miles_lite.config.options import Session
from miles_lite.errors import UserError
from miles_lite.model_folder import context_length
from miles_lite.process.admin_key import admin_key, announced, known_key
from miles_lite.process.stopping import stop_requested
from miles_lite.session.server import SessionSpec
from miles_lite.session.supervised_server import Supervisor


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """session server: what it serves, and where."""

    hf_checkpoint: str = option(help="model folder: config.json, tokenizer and chat template are read", path=True)
    router_url: str = option(help="router, or a single engine: where /generate is")
    bind_host: str = option("127.0.0.1", help="interface to bind to; off loopback each session needs its key")
    advertise_host: str | None = option(None, help="host name others are told (default: --bind-host)")
    router_timeout: float = option(600.0, help="seconds to wait for an engine's answer", above=0)
    rollout_max_context_len: int | None = option(None, help="the engine's context length in tokens", least=2)
    run_dir: str = option("runs/session", help="folder of the journal", path=True)


OF_ONE_SERVER = tuple(name for name in Session.__dataclass_fields__ if name != "num_session_servers")
"""The flags of a run's session servers that this one has too."""


OF_SGLANG = ("enable_return_routed_experts", "reasoning_parser", "tool_call_parser")
"""What a session server must know of how its engines were started."""


def main(argv: Sequence[str]) -> int:
    """Parse flags and serve; the exit code. Raises UserError."""
    parser = Parser(prog="miles-lite session", allow_abbrev=False)
    add_group(parser, SessionOptions)
    add_group(parser, Session, only=OF_ONE_SERVER)
    namespace, unknown = parser.parse_known_args(list(argv))
    leftovers = sort_leftovers(parser, unknown)
    leftovers.show_ignored()
    sglang = leftovers.sglang
    if without := [f"--sglang-{name.replace('_', '-')}" for name in sglang if name not in OF_SGLANG]:
        known = ", ".join(f"--sglang-{name.replace('_', '-')}" for name in OF_SGLANG)
        raise UserError(f"{', '.join(without)}: no engine is started here; of SGLang's flags there are {known}")
    options, session = take_group(namespace, SessionOptions), take_group(namespace, Session)
    folder = Path(options.hf_checkpoint).expanduser().resolve()
    spec = SessionSpec(
        index=0,
        model_path=str(folder),
        router_url=options.router_url,
        bind_host=options.bind_host,
        advertise_host=options.advertise_host or options.bind_host,
        port=session.session_server_port,
        options=session,
        context_length=context_length(folder, options.rollout_max_context_len),
        call_seconds=options.router_timeout,
        run_dir=str(Path(options.run_dir).resolve()),
        routed_experts=bool(sglang.get("enable_return_routed_experts")),
        reasoning_parser=sglang.get("reasoning_parser"),
        tool_call_parser=sglang.get("tool_call_parser"),
        admin_key=admin_key(options.bind_host, known_key()),
    )
    asyncio.run(_serve(Supervisor(spec)))
    return 0


async def _serve(supervisor: Supervisor) -> None:
    stop = stop_requested()
    try:
        url = await supervisor.start()
        print(announced(supervisor.spec.admin_key, known_key()), end="")
        print(f"sessions: {url}    POST {url}/sessions, then OpenAI chat at /sessions/ID/v1", flush=True)
        await stop.wait()
    finally:
        await supervisor.stop()
