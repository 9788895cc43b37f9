"""How fast an engine that is lost during a rollout is missed, and replaced.

    python benchmarks/recovery.py [--json FILE]

Two engines on this machine's CPU serve 8 sessions that chat without a pause, 32 tokens a reply. One engine is killed
(SIGKILL to its process group); later the scheduler of one is stopped (SIGSTOP), which leaves `/health` at 200. Printed:

failover_seconds        engine killed: from its detection to the slowest session's next successful reply      (<= 1)
reply_seconds           a reply while both engines serve, and
reply_seconds_beside    while one serves and the other's replacement starts: the floor of failover_seconds
detection_seconds       from the kill to the detection
replacement_seconds     from the detection to the replacement's registration, while the other engine serves
cold_start_seconds      one engine's start, executed, on the same machine, nothing else running but router and sessions
replacement_ratio       replacement_seconds / cold_start_seconds                                              (<= 1.5)
hang_detection_seconds  from SIGSTOP to the detection; --engine-health-timeout is 3 s here
hang_failover_seconds   from that to the slowest session's next reply
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import ray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the model folder and the chatting sessions, which are the tests'

from miles_lite.config.places import Topology  # noqa: E402
from miles_lite.engine.forked_engines import forking_engines  # noqa: E402
from miles_lite.stack.fleet import Fleet  # noqa: E402
from miles_lite.stack.placement import place  # noqa: E402
from miles_lite.stack.stack import Stack  # noqa: E402
from tests.models import make_tiny_model  # noqa: E402
from tests.stack.chats import Chats, replaced, scheduler_of, stack_options  # noqa: E402
from tests.waiting import until  # noqa: E402

SESSIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
            model = make_tiny_model(Path(folder, "model"))
            numbers = {"cold_start_seconds": asyncio.run(cold_start(model, Path(folder, "cold")))}
            with forking_engines("cpu", Topology(), Path(folder)):  # as a run does
                numbers |= asyncio.run(recover(model, Path(folder, "run")))
    finally:
        ray.shutdown()
    numbers["replacement_ratio"] = numbers["replacement_seconds"] / numbers["cold_start_seconds"]
    for name, value in sorted(numbers.items()):
        print(f"{name:24s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


async def cold_start(model: Path, run_dir: Path) -> float:
    """Seconds until a stack of one engine is up."""
    options = stack_options(model, run_dir)
    options = dataclasses.replace(options, topology=dataclasses.replace(options.topology, rollout_num_gpus=1))
    layout = place(options.topology, train=False)
    stack = Stack(options, layout)
    began = time.time()
    await stack.start()
    seconds = time.time() - began
    await stack.stop()
    layout.remove()
    await until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "Ray's free CPUs")
    return seconds


async def recover(model: Path, run_dir: Path) -> dict[str, float]:
    options = stack_options(model, run_dir, engine_health_interval=0.5, engine_health_timeout=3.0)
    stack = Stack(options, place(options.topology, train=False))
    await stack.start()
    chats = Chats(stack.session_urls[0], count=SESSIONS)
    chatting = asyncio.create_task(chats.run())
    try:
        await until(lambda: len(chats.replies) > 10 * SESSIONS, "the first replies")
        lost = time.time()
        os.killpg((await stack.fleet.call(Fleet.status)).engines[0].pid, signal.SIGKILL)
        first = await replaced(stack.fleet, 1)
        await until(lambda: max(chats.first_after(first.recoveries[0].serving)) < 60, "replies after it")
        stopped = time.time()
        scheduler_of(first.engines[1].pid).suspend()
        killed, hung = (await replaced(stack.fleet, 2)).recoveries
        await until(lambda: max(chats.first_after(hung.noticed)) < 60, "replies after it")
        chats.stopped = True
        await chatting
    finally:
        await stack.stop()
    return {
        "reply_seconds": chats.pace(lost - 10, lost),
        "reply_seconds_beside": chats.pace(killed.noticed, killed.serving),
        "failover_seconds": max(chats.first_after(killed.noticed)),
        "detection_seconds": killed.noticed - lost,
        "replacement_seconds": killed.serving - killed.noticed,
        "hang_detection_seconds": hung.noticed - stopped,
        "hang_failover_seconds": max(chats.first_after(hung.noticed)),
    }


if __name__ == "__main__":
    main()
