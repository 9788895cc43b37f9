"""What rollouts ahead of the trainer bring where tools take their time, beside what `miles-lite simulate` foresees.

    python benchmarks/one_step_off.py [--pairs 1] [--steps 16] [--curves 1] [--curve-steps 24] [--json FILE]

Agents that talk to a small model on this machine's CPU, in two turns on average; tools sleep between them, log-normal,
p99 ten times the median. The same run with --max-weight-staleness 0 and 1, alternating. Printed:

async_vs_sync               steps an hour one step off, over those in turn                        (asked: >= 1.3)
{sync,async}_step_seconds   from the end of the second step to that of the last, per step
{sync,async}_foreseen       seconds a step that the simulation foresees, over those measured      (asked: within 25 %)
async_foreseen_shared       the same of the runs one step off, where it is told what these say of their parts
{sync,async}_foreseen_spread  standard deviation of runs of so many steps that differ by their tools' luck alone

The simulation is told how tools and turns are drawn, and what the runs in turn say of a token's decoding, of the
trainer and of weight updates; of the runs one step off it is told nothing. It knows engines and a trainer with machines
of their own: where both share the cores, each is slower while the other works, and `async_foreseen_shared` knows it.

What is learned does not depend on how long tools sleep, and few steps say little of it. So it is measured on runs of
their own, with as many steps in turn and one step off, whose tools do not sleep, each with `--curves` seeds:

{sync,async}_reward         mean reward of the last quarter of the steps, over the seeds          (asked: the same)
{sync,async}_reward_spread  its standard deviation over the seeds, of two and more
{sync,async}_steps_to_half  steps until the mean reward of four in a row is half of what is earned at the end in turn
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from miles_lite.simulation.case import Case, simulate
from miles_lite.simulation.scenario import EngineModel, Scenario, ScheduleModel, TaskModel, TrainerModel

ROOT = Path(__file__).resolve().parent.parent
TOOL_P50, TOOL_P99 = 1.0, 10.0
"""Seconds."""
TURN_TOKENS = 32
GROUPS, MEMBERS = 4, 4
LIMIT = 600
SIMULATED = 64
"""Runs."""
Rows = Sequence[dict[str, float]]


async def agent(
    base_url: str, api_key: str, prompt: Any, request_kwargs: dict[str, Any], metadata: dict[str, Any], **_: Any
) -> dict[str, Any]:
    """Asks, waits for a tool, asks again; the reward is the share of vowels."""
    import numpy as np
    import openai

    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key)
    messages: list[Any] = [{"role": "user", "content": str(prompt)}]
    said, text, asked = "", "", 0.0
    turns = 1 + int(np.random.default_rng().poisson(1.0))
    for turn in range(turns):
        if turn > 0:
            sigma = math.log(TOOL_P99 / TOOL_P50) / 2.326
            await asyncio.sleep(metadata["sleeps"] * random.lognormvariate(math.log(TOOL_P50), sigma))
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and?"}]
        began = time.monotonic()
        reply = await client.chat.completions.create(model="m", messages=messages, **request_kwargs)
        asked += time.monotonic() - began
        text = reply.choices[0].message.content or ""
        said += text
    vowels = sum(letter in "aeiou" for letter in said) / max(1, len(said))
    return {"reward": vowels, "turns": turns, "model_query_time_sum": asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--curves", type=int, default=1, help="seeds; 0: no reward is measured")
    parser.add_argument("--curve-steps", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for the model, which is the tests'
    from tests.models import make_tiny_model

    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        model = make_tiny_model(Path(folder, "model"))
        if args.pairs:
            numbers |= pace(runs(model, Path(folder, "pace"), args.pairs, steps=args.steps, sleeps=1.0))
        if args.curves:
            numbers |= learned(runs(model, Path(folder, "learned"), args.curves, steps=args.curve_steps, sleeps=0.0))
    for name, value in numbers.items():
        print(f"{name:24s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def runs(model: Path, folder: Path, pairs: int, *, steps: int, sleeps: float) -> dict[str, list[Rows]]:
    """So many in turn and one step off, alternating, each pair with a seed of its own."""
    seen: dict[str, list[Rows]] = {"sync": [], "async": []}
    for seed in range(pairs):
        for name in ("sync", "async") if seed % 2 == 0 else ("async", "sync"):
            rows = run(model, folder / f"{name}-{seed}", int(name == "async"), steps=steps, sleeps=sleeps, seed=seed)
            curve = " ".join(f"{earned:.2f}" for earned in rewards(rows)[::4])
            print(f"{name:5s} {step_seconds(rows):6.2f} s a step, reward at each fourth {curve}", flush=True)
            seen[name].append(rows)
    return seen


def pace(seen: dict[str, list[Rows]]) -> dict[str, float]:
    """Seconds a step, measured and foreseen."""
    took = {name: statistics.fmean(map(step_seconds, runs)) for name, runs in seen.items()}
    steps = len(values(seen["sync"][0], "perf/step_time"))
    told = {name: [row for rows in runs for row in rows] for name, runs in seen.items()}
    foreseen = {name: foresee(told["sync"], staleness=int(name == "async"), steps=steps) for name in seen}
    return {
        "async_vs_sync": took["sync"] / took["async"],
        **{f"{name}_step_seconds": seconds for name, seconds in took.items()},
        **{f"{name}_foreseen": mean / took[name] for name, (mean, _) in foreseen.items()},
        "async_foreseen_shared": foresee(told["async"], staleness=1, steps=steps)[0] / took["async"],
        **{f"{name}_foreseen_spread": spread / took[name] for name, (_, spread) in foreseen.items()},
    }


def learned(seen: dict[str, list[Rows]]) -> dict[str, float]:
    """What was earned in the end, and when half of it."""
    numbers: dict[str, float] = {}
    for name, runs in seen.items():
        ends = [statistics.fmean(rewards(rows)[-(len(rewards(rows)) // 4) :]) for rows in runs]
        numbers[f"{name}_reward"] = statistics.fmean(ends)
        if len(ends) > 1:
            numbers[f"{name}_reward_spread"] = statistics.stdev(ends)
    for name, runs in seen.items():
        mean = [statistics.fmean(at) for at in zip(*map(rewards, runs), strict=True)]
        four = [statistics.fmean(mean[at : at + 4]) for at in range(len(mean) - 3)]
        reached = (at for at, earned in enumerate(four) if earned >= numbers["sync_reward"] / 2)
        numbers[f"{name}_steps_to_half"] = next(reached, math.inf)
    return numbers


def run(model: Path, folder: Path, staleness: int, *, steps: int, sleeps: float, seed: int) -> Rows:
    """The metrics of one run, whose tools sleep so many times as long as they are said to."""
    folder.mkdir(parents=True)
    prompts = folder / "prompts.jsonl"
    rows = [{"input": f"tell me of {n}", "metadata": {"sleeps": sleeps}} for n in range(256)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--hf-checkpoint {model} --prompt-data {prompts} --run-dir {folder / 'run'} --num-rollout {steps}"
    flags += f" --custom-agent-function-path {__file__}:agent --tito-allowed-append-roles user --use-tis"
    flags += f" --rollout-batch-size {GROUPS} --n-samples-per-prompt {MEMBERS} --max-weight-staleness {staleness}"
    flags += f" --actor-num-gpus-per-node 1 --colocate --rollout-num-gpus 1 --rollout-max-response-len {TURN_TOKENS}"
    flags += f" --rollout-max-context-len 1024 --lr 1e-2 --device cpu --seed {seed} --rollout-seed {seed}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "miles_lite", "train", *flags.split()]
    with (folder / "log").open("wb") as log:
        done = subprocess.run(command, env=environment, cwd=ROOT, timeout=LIMIT, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        raise SystemExit((folder / "log").read_text(errors="replace")[-4000:])
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def values(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def step_seconds(rows: Rows) -> float:
    ended = [row["time"] for row in rows if "perf/step_time" in row]
    return (ended[-1] - ended[1]) / (len(ended) - 2)


def rewards(rows: Rows) -> list[float]:
    return values(rows, "rollout/reward_unfiltered")


def later(rows: Rows, name: str) -> float:
    """The mean after the first two steps of each run, which compile."""
    return statistics.fmean(row[name] for row in rows if name in row and row["rollout/step"] > 1)


def foresee(rows: Rows, *, staleness: int, steps: int) -> tuple[float, float]:
    """Seconds a step from what `rows` say of their parts: mean and standard deviation over runs of so many steps."""
    tokens = statistics.fmean(values(rows, "rollout/response_len/mean"))
    decoding = statistics.fmean(values(rows, "agent/model_query_time_sum_mean")) / tokens
    trains = later(rows, "perf/train_time") + later(rows, "perf/overhead_time")
    sync = later(rows, "perf/update_weights_time")
    middle = statistics.fmean(values(rows, "rollout/response_len/median"))
    longest = statistics.fmean(values(rows, "rollout/response_len/max"))
    scenario = Scenario(
        engines=1,
        steps=steps,
        engine=EngineModel(step=decoding, sequence=0.0, context=0.0, prefill=1e6),
        trainer=TrainerModel(tokens_per_second=1e9, fixed=trains, sync=sync, pause=sync, mode="retract"),
        task=TaskModel(
            tokens_p50=middle,
            tokens_p99=max(middle, longest),
            longest=longest,
            group_share=0.0,
            prompt=20.0,
            turns=2.0,
            observation=10.0,
            tool_p50=TOOL_P50,
            tool_p99=TOOL_P99,
            failures=0.0,
        ),
        schedule=ScheduleModel(
            rollout_batch_size=GROUPS,
            n_samples_per_prompt=MEMBERS,
            max_weight_staleness=staleness,
            rollout_concurrency=64,
        ),
    )
    took = []
    for seed in range(SIMULATED):
        ended = [step.ended for step in simulate(Case(replace(scenario, seed=seed))).steps]
        took.append((ended[-1] - ended[1]) / (len(ended) - 2))
    return statistics.fmean(took), statistics.stdev(took)


if __name__ == "__main__":
    main()
