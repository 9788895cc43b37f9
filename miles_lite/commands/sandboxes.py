"""`miles-lite sandboxes`: this machine's sandboxes for others, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.config.places import Hosts
from miles_lite.errors import user_error
from miles_lite.process.addresses import bracketed
from miles_lite.process.admin_key import admin_key, announced, known_key
from miles_lite.sandboxes import SANDBOXES, provider
from miles_lite.sandboxes.lending import Limits, Pool
from miles_lite.sandboxes.sandbox_server import application

ENDING_SECONDS = 5
"""For requests that are worked on when it is told to end."""


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """sandboxes: what an agent's commands run in."""

    hosts: Hosts
    kind: str = option("bwrap", choices=tuple(SANDBOXES), help="what they are")
    port: int | None = option(None, help="port (default: a free one)", least=1, most=65535)
    at_once: int = option(64, help="sandboxes at once; who asks for more waits", least=1)
    starting: int = option(4, help="sandboxes that start at a time", least=1)
    spare: int = option(0, help="sandboxes ready before they are asked for, of what was asked for last", least=0)
    idle_timeout: float = option(900.0, help="seconds after which one that is asked nothing ends", above=0)


def main(argv: Sequence[str]) -> int:
    """Parse flags and serve; the exit code. Raises UserError."""
    parser = parser_of(SandboxOptions, prog="miles-lite sandboxes")
    options = take(parser.parse_args(list(argv)), SandboxOptions)
    host = options.hosts.bind_host
    key = admin_key(host, known_key())
    limits = Limits(at_once=options.at_once, starting=options.starting, spare=options.spare)
    pool = Pool(provider(options.kind), limits)
    app = application(pool, idle=options.idle_timeout, at_once=2 * options.at_once, admin_key=key)
    with user_error(f"cannot listen on {host}, port {options.port or 'any'}", OSError):
        listening = socket.create_server(
            (host, options.port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    with listening:
        print(announced(key, known_key()), end="", flush=True)
        print(f"sandboxes: http://{bracketed(host)}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=ENDING_SECONDS)).run(
            [listening]
        )
    return 0
