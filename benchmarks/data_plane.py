"""What the rollout manager feels of the arrays that pass from agent workers to the ranks that train them.

    python benchmarks/data_plane.py [--json FILE]

Two agent workers collect samples of 32,768 tokens with the routed experts of 48 layers x 8 (12.6 MB each) from a
session server that always gives the same; the manager makes 4 steps of 40 of them, 2 GB in all; two ranks fetch their
batches and read every byte. Workers, manager and the ranks' fetching are those of a run; engines and the learner are
left out. Printed:

manager_growth_mb   the manager's resident memory, its largest during the steps less that before       (asked: <= 50)
loop_blocked_ms     the longest that work of its own process kept the manager's event loop             (asked: <= 20)
loop_late_ms        the longest that a timer of that loop was late, whoever used the processors
passed_gb           routed experts that the ranks read
gb_per_second       that, over the seconds of all steps
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import ray
import torch
from aiohttp import web

import miles_lite.rollout.manager
from miles_lite.config.options import Config, parse
from miles_lite.rollout.manager import RolloutManager
from miles_lite.sample import Sample
from miles_lite.session.samples.sample_file import encode_samples
from miles_lite.stack.actors import Waiting
from miles_lite.stack.fleet import Fleet, FleetStatus
from miles_lite.train.advantages import estimate
from miles_lite.train.batching import Batch, make_batches
from miles_lite.train.flops import Flops
from miles_lite.train.packing import check
from miles_lite.train.phases import Clock
from miles_lite.train.rank import TrainWorker, WorkerSpec

TOKENS, LAYERS, TOP_K = 32_768, 48, 8
STEPS, GROUPS, ROLLOUTS, RANKS = 4, 10, 4, 2
STORE_BYTES = 5 << 28
"""Room for the samples of two steps."""
BEAT = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
    )
    try:
        with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
            numbers = measure(Path(folder))
    finally:
        ray.shutdown()
    for name, value in numbers.items():
        print(f"{name:18s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def measure(folder: Path) -> dict[str, float]:
    """All numbers."""
    (folder / "prompts.jsonl").write_text('{"input": "go"}\n')
    flags = ["--hf-checkpoint", str(folder), "--prompt-data", str(folder / "prompts.jsonl"), "--run-dir", str(folder)]
    flags += ["--rollout-batch-size", str(GROUPS), "--n-samples-per-prompt", str(ROLLOUTS), "--num-rollout", str(STEPS)]
    flags += ["--keep-trajectories", "0"]
    flags += ["--num-agent-workers", "2", "--agent-concurrency", "2", "--actor-num-gpus-per-node", str(RANKS)]
    config, _ = parse([*flags, "--custom-agent-function-path", f"{__file__}:agent"])
    actors: Any = ray.remote(num_cpus=0)
    sessions = actors(Sessions).remote()
    manager = actors(Manager).remote(config, ray.get(sessions.start.remote()))
    ranks = [actors(Rank).remote(config, rank) for rank in range(RANKS)]
    ray.get([manager.start.remote(), *(rank.start.remote() for rank in ranks)])
    ray.get(manager.watch_itself.remote())
    began, passed = time.perf_counter(), 0.0
    for step in range(STEPS):
        generated: Any = ray.get(manager.generate.remote(step))
        batches = make_batches(
            step,
            *estimate(generated.groups, config.algorithm),
            ranks=RANKS,
            global_batch_size=config.global_batch_size,
            options=config.algorithm,
            flops=Flops(per_token=1.0, per_pair=0.0),
        )
        done: Any = ray.get([rank.train.remote(batch) for rank, batch in zip(ranks, batches, strict=True)])
        passed += sum(one["bytes"] for one in done)
        del generated, batches
    seconds = time.perf_counter() - began
    numbers: dict[str, float] = dict(ray.get(manager.felt.remote()))
    ray.get(manager.stop.remote())
    return numbers | {"passed_gb": passed / 1e9, "gb_per_second": passed / 1e9 / seconds}


async def agent(**given: Any) -> dict[str, Any]:
    """The run's agent function: whatever the session holds is its work."""
    return {"reward": float(random.random() < 0.5)}


class Sessions:
    """A session server whose sessions all hold the same sample."""

    async def start(self) -> str:
        self._samples = encode_samples([make_sample()])
        app = web.Application()
        app.router.add_post("/sessions", self._create)
        app.router.add_get("/sessions/{id}", self._describe)
        app.router.add_post("/sessions/{id}/samples", self._collect)
        app.router.add_delete("/sessions/{id}", self._delete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _create(self, request: web.Request) -> web.Response:
        return web.json_response({"session_id": f"{random.getrandbits(64):x}", "api_key": "-"})

    async def _describe(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _collect(self, request: web.Request) -> web.Response:
        return web.Response(body=self._samples)

    async def _delete(self, request: web.Request) -> web.Response:
        return web.Response()


def make_sample() -> Sample:
    """The last half of its tokens was sampled."""
    mask = (np.arange(TOKENS) >= TOKENS // 2).astype(np.uint8)
    return Sample(
        tokens=np.arange(TOKENS, dtype=np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        temperatures=np.ones(TOKENS, np.float32),
        weight_versions=mask.astype(np.int32) - 1,
        routed_experts=np.random.default_rng(0).integers(0, 128, (TOKENS - 1, LAYERS, TOP_K), np.uint8),
    )


class NoEngines:
    """The fleet of a stack without any."""

    async def call(self, method: object) -> FleetStatus | None:
        return FleetStatus(engines=(), restarts=0, recoveries=()) if method is Fleet.status else None


class OneServer:
    """Where a run has its stack: one session server, and nothing behind it."""

    admin_key, session_urls, engine_urls = None, (), ()
    routers = SimpleNamespace(urls=[""], of=lambda index: "")
    fleet, failure = NoEngines(), None

    def __init__(self, url: str, run_dir: Path) -> None:
        self.waiting = Waiting(print, run_dir / "logs")
        self.sessions = [Server(address=url, restarts=0)]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def session_stats(self) -> dict[str, float]:
        return {}

    def alarm(self, line: str) -> None:
        print(line, file=sys.stderr)


class Server(SimpleNamespace):
    """Where it is, and how often it was replaced; one that can be counted."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Manager(RolloutManager):
    """A run's manager, which looks at its memory and its loop."""

    def __init__(self, config: Config, url: str) -> None:
        miles_lite.rollout.manager.Stack = lambda *_, **__: OneServer(url, config.run_dir)  # type: ignore[assignment,attr-defined]
        super().__init__(config, None)  # type: ignore[arg-type]

    async def watch_itself(self) -> None:
        self._felt: dict[str, float] = {}
        self._resident = psutil.Process().memory_info().rss
        self._watching = asyncio.create_task(self._watch())

    async def felt(self) -> dict[str, float]:
        self._watching.cancel()
        return self._felt

    async def _watch(self) -> None:
        process = psutil.Process()
        while True:
            at, worked = time.perf_counter(), time.process_time()
            await asyncio.sleep(BEAT)
            late, worked = time.perf_counter() - at - BEAT, time.process_time() - worked
            grown = (process.memory_info().rss - self._resident) / 1e6
            found = {"manager_growth_mb": grown, "loop_blocked_ms": 1e3 * min(late, worked), "loop_late_ms": 1e3 * late}
            for name, value in found.items():
                self._felt[name] = max(value, self._felt.get(name, 0.0))


class Rank(TrainWorker):
    """A run's rank, with a learner that only reads."""

    def __init__(self, config: Config, rank: int) -> None:
        super().__init__(WorkerSpec(config=config, rank=rank, ranks=RANKS, device="cpu", host="127.0.0.1", threads=1))

    def start(self, *given: Any) -> int:
        self._learner = Reader()  # type: ignore[assignment]
        return 0


class Reader:
    """Reads every routed expert of a batch."""

    def __init__(self) -> None:
        self.clock = Clock(torch.device("cpu"))

    def train(self, batch: Batch[Sample]) -> dict[str, float]:
        samples = check(batch, vocabulary=1 << 18).samples
        experts = [sample.routed_experts for sample in samples if sample.routed_experts is not None]
        assert len(experts) == len(samples)
        assert all(int(each.max()) < 128 for each in experts)  # reads them
        return {"bytes": float(sum(each.nbytes for each in experts))}


if __name__ == "__main__":
    main()
