"""What the scheduler costs: microseconds an event, and bytes a rollout in flight.

    python benchmarks/scheduler.py [--rollouts 65536] [--events 200000] [--json FILE]

As many rollouts run as are asked for, in groups of eight; each event ends a random one, which starts another, and
batches are judged, given and trained as they come. Nothing but the scheduler is measured: what is drawn for it is drawn
before.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections import deque
from pathlib import Path

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.protocol import Event, Who
from miles_lite.scheduler.schedule import Schedule
from miles_lite.scheduler.scheduler import Scheduler

GROUP = 8
STALENESS = 3


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
        self.running: list[Who] = []
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
                    case m.Judge(group, _):
                        waiting.append(m.Judged(group))
                    case m.Give(step, _, _):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=65536)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--order", choices=["fifo", "longest"], default="longest")
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    numbers = measure(args.rollouts, args.events, args.order)
    print("\n".join(f"{name:20} {value:.6g}" for name, value in numbers.items()))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
