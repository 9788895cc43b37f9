"""What the scheduler costs, microseconds an event and bytes a rollout in flight; and what the manager around it does.

    python benchmarks/scheduler.py [--rollouts 65536] [--events 200000] [--manager 4096] [--json FILE]

As many rollouts run as are asked for, in groups of eight; each event ends a random one, which starts another, and
batches are judged, given and trained as they come. Nothing but the scheduler is measured: what is drawn for it is drawn
before.

Then a run's rollout manager has `--manager` rollouts at once (0: not), in actors that take half a minute to one and a
half for each and do nothing else. `manager_core_share` is the processor time of its process, all threads, as a share of
a core, over a minute that begins when the first batch is complete; `rollouts_per_second` what it started and ended
meanwhile, and `manager_ms_per_rollout` the same processor time for each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray

import miles_lite.process.remote
import miles_lite.rollout.manager
from miles_lite.config.options import parse
from miles_lite.rollout.agent_calls import Ran, Running, Task
from miles_lite.rollout.manager import RolloutManager
from miles_lite.sample import NOT_SAMPLED, Rollout, Sample, Status
from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.protocol import AttemptId, Event
from miles_lite.scheduler.schedule import Schedule
from miles_lite.scheduler.scheduler import Scheduler
from miles_lite.stack.fleet import Fleet as EngineFleet
from miles_lite.stack.fleet import FleetStatus

GROUP = 8
STALENESS = 3
WORKERS = 4
TAKES = 30.0, 90.0
"""Seconds of a rollout, at least and at most."""
WINDOW = 60.0


class Deals:
    """Prompts in turn."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return self._next

    def __len__(self) -> int:
        return 1 << 30


class Fleet:
    """Does what it is told, at once; `events` counts what it told, `seconds` what the scheduler took for that."""

    def __init__(self, schedule: Schedule) -> None:
        self.scheduler = Scheduler(schedule, Deals())
        self.running: list[AttemptId] = []
        self.events, self.seconds, self.slowest, self.batches = 0, 0.0, 0.0, 0

    def tell(self, *events: Event) -> None:
        waiting = deque(events)
        while waiting:
            event = waiting.popleft()
            began = time.perf_counter()
            commands = self.scheduler.on(event, began)
            took = time.perf_counter() - began
            self.events, self.seconds, self.slowest = self.events + 1, self.seconds + took, max(self.slowest, took)
            for command in commands:
                match command:
                    case m.Start(who, _):
                        self.running.append(who)
                    case m.Judge(group):
                        waiting.append(m.Judged(group))
                    case m.Deliver(step, _, _):
                        self.batches += 1
                        waiting += [m.Trained(step), m.Updated(step + 1), m.Wanted()]
                    case m.Stop(reason):
                        raise SystemExit(reason)


def measure(rollouts: int, events: int, order: str) -> dict[str, float]:
    """Numbers of one run with `rollouts` in flight."""
    groups = rollouts // GROUP
    schedule = Schedule(
        groups_per_step=groups // (STALENESS + 1),
        rollouts_per_group=GROUP,
        max_staleness=STALENESS,
        depth=STALENESS,
        capacity=rollouts,
        order="longest" if order == "longest" else "fifo",
        sample_retries=2,
    )
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    fleet = Fleet(schedule)
    fleet.tell(m.Updated(0), m.Wanted())
    listed = len(fleet.running) * 8
    size = (tracemalloc.get_traced_memory()[0] - before - listed) / len(fleet.running)
    tracemalloc.stop()
    chance = random.Random(0)
    fleet.events, fleet.seconds, fleet.slowest = 0, 0.0, 0.0
    while fleet.events < events:
        running = fleet.running
        at = chance.randrange(min(len(running), rollouts // 2))
        who, running[at] = running[at], running[-1]
        running.pop()
        failed = "tool" if chance.random() < 0.05 else ""
        fleet.tell(m.Finished(who, chance.randrange(5000), failed))
    return {
        "rollouts": rollouts,
        "us_per_event": 1e6 * fleet.seconds / fleet.events,
        "slowest_event_us": 1e6 * fleet.slowest,
        "bytes_per_rollout": size,
        "batches": fleet.batches,
    }


class Worker(Running):
    """Where an agent worker is: rollouts that only take time."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        super().__init__(self.run)

    async def run(self, task: Task) -> Ran:
        fresh = time.monotonic() - self._began > TAKES[0]
        await asyncio.sleep(random.uniform(TAKES[0] if fresh else 0.0, TAKES[1]))
        now, mask = time.time(), np.array([0, 1, 1, 1], dtype=np.uint8)
        sample = Sample(
            tokens=np.arange(4, dtype=np.int32),
            loss_mask=mask,
            logprobs=-mask.astype(np.float32),
            temperatures=np.ones(4, dtype=np.float32),
            weight_versions=np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32),
        )
        rollout = Rollout(task.rollout_index, task.group_index, [sample.record()], started_at=now, finished_at=now)
        rollout.status, rollout.reward = Status.COMPLETED, float(random.random() < 0.5)
        return rollout, [sample], b""


class Standing(SimpleNamespace):
    """An actor that is never replaced; one that can be counted."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    async def serving(self) -> Any:
        return self.actor

    async def start(self) -> None: ...


class NoEngines:
    """The fleet of a stack without any."""

    async def call(self, method: object) -> FleetStatus | None:
        return FleetStatus(engines=(), restarts=0, recoveries=()) if method is EngineFleet.status else None


class NoServers(SimpleNamespace):
    """Where a run has its stack."""

    async def start(self) -> None: ...

    async def session_stats(self) -> dict[str, float]:
        return {}


class Manager(RolloutManager):
    """A run's manager, with workers that only take time."""

    def __init__(self, flags: list[str]) -> None:
        nobody = Standing(address="", restarts=0)
        nowhere = {"admin_key": None, "waiting": None, "session_urls": (), "engine_urls": (), "failure": None}
        routers = SimpleNamespace(urls=[""], of=lambda index: "")
        stack = NoServers(routers=routers, sessions=[nobody], fleet=NoEngines(), **nowhere)
        miles_lite.rollout.manager.Stack = lambda *_, **__: stack  # type: ignore[assignment,attr-defined]
        super().__init__(parse(flags)[0], None)  # type: ignore[arg-type]

    def _worker(self, index: int) -> Any:
        actor: Any = ray.remote(num_cpus=0)(Worker).remote()
        return Standing(actor=miles_lite.process.remote.Remote(actor), restarts=0)

    async def spent(self) -> tuple[float, float, int]:
        """Seconds on a clock and of the processor, and rollouts so far."""
        return time.monotonic(), time.process_time(), self._rollouts


def measure_manager(rollouts: int) -> dict[str, float]:
    """Numbers of a manager with `rollouts` at once."""
    path = os.pathsep.join(filter(None, sys.path))
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": path}}, **quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
            prompts = Path(folder, "prompts.jsonl")
            prompts.write_text('{"input": "go"}\n')
            flags = f"--hf-checkpoint {folder} --prompt-data {prompts} --run-dir {folder} --num-rollout 1000"
            flags += f" --rollout-batch-size {rollouts // GROUP // 2} --n-samples-per-prompt {GROUP}"
            flags += f" --max-weight-staleness {STALENESS} --pipeline-depth {STALENESS}"
            flags += f" --num-agent-workers {WORKERS} --agent-concurrency {rollouts // WORKERS}"
            manager: Any = ray.remote(num_cpus=0)(Manager).remote(flags.split())
            ray.get(manager.start.remote())
            ray.get(manager.generate.remote(0))
            began, busy, before = ray.get(manager.spent.remote())
            step, pending = 1, manager.generate.remote(1)
            while time.monotonic() < began + WINDOW:
                if ray.wait([pending], timeout=0.5)[0]:
                    step, pending = step + 1, manager.generate.remote(step + 1)
            ended, busy_then, after = ray.get(manager.spent.remote())
            status: Any = ray.get(manager.status.remote())
    finally:
        ray.shutdown()
    seconds = ended - began
    return {
        "manager_core_share": (busy_then - busy) / seconds,
        "manager_rollouts": status.rollouts_started - status.rollouts_done,
        "rollouts_per_second": (after - before) / seconds,
        "manager_ms_per_rollout": 1e3 * (busy_then - busy) / (after - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=65536)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--order", choices=["fifo", "longest"], default="longest")
    parser.add_argument("--manager", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    numbers = measure(args.rollouts, args.events, args.order)
    numbers |= measure_manager(args.manager) if args.manager else {}
    print("\n".join(f"{name:20} {value:.6g}" for name, value in numbers.items()))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
