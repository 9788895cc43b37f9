"""What rollouts ahead of the trainer bring where tools take their time: one step off beside in turn.

    python benchmarks/one_step_off.py [--pairs 1] [--steps 12] [--json FILE]

Agents that talk to a small model on this machine's CPU twice, with a tool that sleeps after each answer: log-normal,
p99 ten times the median. The same run with --max-weight-staleness 0 and 1, in turns, whose order changes with each
pair. Printed:

async_vs_sync               steps an hour one step off, over those in turn               (asked: >= 1.3)
{sync,async}_steps_per_hour from the end of the second step to that of the last
{sync,async}_reward         mean of the last half of the steps: the task is learned either way
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOL_P50, TOOL_P99 = 0.7, 7.0
"""Seconds."""
GROUPS, MEMBERS = 4, 4
LIMIT = 600


async def agent(base_url: str, api_key: str, prompt: Any, request_kwargs: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Asks, waits for a tool, asks again; the reward is the share of vowels."""
    import openai

    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key)
    messages: list[Any] = [{"role": "user", "content": str(prompt)}]
    said = ""
    for _turn in range(2):
        reply = await client.chat.completions.create(model="m", messages=messages, **request_kwargs)
        text = reply.choices[0].message.content or ""
        said += text
        sigma = math.log(TOOL_P99 / TOOL_P50) / 2.326
        await asyncio.sleep(random.lognormvariate(math.log(TOOL_P50), sigma))
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and?"}]
    return {"reward": sum(letter in "aeiou" for letter in said) / max(1, len(said))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for the model, which is the tests'
    from tests.models import make_tiny_model

    seen: dict[str, list[float]] = {"sync": [], "async": []}
    rewards: dict[str, list[float]] = {"sync": [], "async": []}
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        model = make_tiny_model(Path(folder, "model"))
        for pair in range(args.pairs):
            for name in ("sync", "async") if pair % 2 == 0 else ("async", "sync"):
                rate, reward = run(model, Path(folder, f"{name}-{pair}"), int(name == "async"), steps=args.steps)
                print(f"{name:5s} {rate:8.0f} steps/hour, reward {reward:.3f}", flush=True)
                seen[name].append(rate)
                rewards[name].append(reward)
    numbers = {
        "async_vs_sync": statistics.fmean(seen["async"]) / statistics.fmean(seen["sync"]),
        **{f"{name}_steps_per_hour": statistics.fmean(rates) for name, rates in seen.items()},
        **{f"{name}_reward": statistics.fmean(found) for name, found in rewards.items()},
    }
    for name, value in numbers.items():
        print(f"{name:24s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def run(model: Path, folder: Path, staleness: int, *, steps: int) -> tuple[float, float]:
    """Steps an hour, and the reward, of one run."""
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"input": f"tell me of {n}"}) + "\n" for n in range(256)))
    flags = f"--hf-checkpoint {model} --prompt-data {prompts} --run-dir {folder / 'run'} --num-rollout {steps}"
    flags += f" --custom-agent-function-path {__file__}:agent --tito-allowed-append-roles user --use-rollout-logprobs"
    flags += f" --rollout-batch-size {GROUPS} --n-samples-per-prompt {MEMBERS} --max-weight-staleness {staleness}"
    flags += " --actor-num-gpus-per-node 1 --colocate --rollout-num-gpus 1 --rollout-max-response-len 32"
    flags += " --rollout-max-context-len 512 --lr 1e-2 --device cpu"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "miles_lite", "train", *flags.split()]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=LIMIT, stdout=2, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    ended = [row["time"] for row in rows if "perf/step_time" in row]
    earned = [row["rollout/reward_unfiltered"] for row in rows if "rollout/reward_unfiltered" in row]
    return 3600 * (len(ended) - 2) / (ended[-1] - ended[1]), statistics.fmean(earned[len(earned) // 2 :])


if __name__ == "__main__":
    sys.exit(main())
