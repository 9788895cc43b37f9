"""`miles-lite serve`: engines, router and session servers of one model, until Ctrl-C.

Invariant: what is printed as ready answers; Ctrl-C or SIGTERM ends everything that was started, within seconds, also
before it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.serving import Serving
from miles_lite.engine.forked_engines import forking_engines
from miles_lite.errors import RunLostError
from miles_lite.job.claim import claimed
from miles_lite.process.admin_key import announced, known_key
from miles_lite.process.post_mortem import DiedError, describe_death, out_of_memory_kills
from miles_lite.process.stacks import stacks_folder, write_stacks
from miles_lite.process.stopping import END_SECONDS, INTERRUPTED, Interrupts, ends_within, stop_requested
from miles_lite.stack.checks import check_serving
from miles_lite.stack.cluster import connected
from miles_lite.stack.engine_plans import describe_plans, plan_engines
from miles_lite.stack.placement import Layout, place
from miles_lite.stack.stack import Stack


def main(argv: Sequence[str]) -> int:
    """Parse flags and serve; the exit code. Raises UserError, RunLostError."""
    options, leftovers = parse_known(parser_of(Serving, prog="miles-lite serve"), argv, Serving)
    leftovers.show_ignored()
    check_serving(options)
    killed_before = out_of_memory_kills()
    address, here = options.cluster.ray_address, {"--run-dir": options.run_dir}
    with contextlib.ExitStack() as bound, claimed(here), connected(address) as logs:
        with Interrupts():
            layout = place(options.topology, train=False)
        bound.enter_context(forking_engines(layout.device, options.topology, options.run_dir / "logs"))
        try:
            asyncio.run(_until_interrupted(options, layout, bound))
        except DiedError as died:
            raise RunLostError(
                f"{died}: {describe_death(died.error, logs=logs, killed_before=killed_before)}"
            ) from died
    return 0


async def _until_interrupted(options: Serving, layout: Layout, bound: contextlib.ExitStack) -> None:
    """From when it ends, `bound` holds the time for that. Raises KeyboardInterrupt when it ends before anything is
    ready, UserError when no engine is left, DiedError when their fleet is dead."""
    stop, loop = stop_requested(), asyncio.get_running_loop()
    stack = Stack(options, layout, known_key=known_key())

    def look() -> None:
        write_stacks(stacks_folder(options.run_dir / "logs"), {}, own="serve", loop=loop)

    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(stack.stop)
        ending.callback(
            lambda: bound.enter_context(ends_within(END_SECONDS, INTERRUPTED if stop.is_set() else 1, look))
        )
        stopping, starting = asyncio.create_task(stop.wait()), asyncio.create_task(stack.start())
        ending.callback(stopping.cancel)
        ending.callback(starting.cancel)
        print(f"{describe_plans(plan_engines(options.topology))}; logs: {options.run_dir / 'logs'}", flush=True)
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            raise KeyboardInterrupt
        await starting
        _announce(stack, options)
        while not stop.is_set():
            if stack.failure is not None:
                raise stack.failure
            await asyncio.wait({stopping}, timeout=1.0)


def _announce(stack: Stack, options: Serving) -> None:
    for url in stack.routers.urls:
        print(f"router    {url}")
    for url in stack.session_urls:
        print(f"sessions  {url}    POST {url}/sessions, then OpenAI chat at /sessions/ID/v1")
    for url in stack.engine_urls:
        print(f"engine    {url}")
    print(announced(stack.admin_key, options.engines.text("admin_api_key"), known_key()), end="")
    print("ready; Ctrl-C ends it", flush=True)
