"""`miles-lite dash [FOLDER]`: the runs of a folder in a browser, live.

Invariant: it reads and changes nothing; off loopback it takes a token that is made for this start and printed.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError, user_error
from miles_lite.job.claim import in_use
from miles_lite.process.addresses import bracketed, loopback, reachable
from miles_lite.report.dashboard import app_of
from miles_lite.report.runs import Runs


@dataclass(frozen=True, kw_only=True)
class Dash:
    """dash: which runs, and where it is served."""

    folder: str = option("runs", positional=True, nargs="?", help="folder of run folders, or one of them")
    bind_host: str = option("127.0.0.1", help="interface; off loopback a token is asked for")
    port: int = option(8700, help="0: any that is free", least=0, most=65535)


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C. Raises UserError for a folder that is not there."""
    options = take(parser_of(Dash, prog="miles-lite dash").parse_args(list(argv)), Dash)
    folder = Path(options.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give that of --run-dir, or the one that it is in")
    token = None if loopback(options.bind_host) else secrets.token_urlsafe(24)
    app = app_of(Runs(folder, running=in_use), token=token, ending=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    with _listening(options.bind_host, options.port) as listening:
        port = listening.getsockname()[1]
        host = bracketed(reachable(options.bind_host))
        print(f"http://{host}:{port}/{f'?token={token}' if token else ''}", flush=True)
        server.run([listening])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Raises UserError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with user_error(f"--bind-host {host} --port {port} (0: any that is free): nobody can listen there", OSError):
        return socket.create_server((host, port), family=family)
