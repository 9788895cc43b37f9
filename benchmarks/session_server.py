"""A session server in a process of its own, for the session benchmark: prints its port, serves until it is ended."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging

import uvloop

from miles_lite import config
from miles_lite.session.server import SessionServer, SessionSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--router-url", required=True)
    parser.add_argument("--run-dir", help="keep a journal there")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    uvloop.run(_serve(args.model, args.router_url, args.run_dir))


async def _serve(model: str, router_url: str, run_dir: str | None) -> None:
    spec = session_spec(model, router_url, run_dir)
    url = await SessionServer(spec).start()
    gc.collect()
    gc.freeze()  # as the worker process does
    print(url.rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


def session_spec(model: str, router_url: str, run_dir: str | None) -> SessionSpec:
    return SessionSpec(
        index=0,
        model_path=model,
        router_url=router_url,
        bind_host="127.0.0.1",
        advertise_host="127.0.0.1",
        port=None,
        options=config.Session(tito_allowed_append_roles=("tool", "user")),
        context_length=262_144,
        run_dir=run_dir,
    )


if __name__ == "__main__":
    main()
