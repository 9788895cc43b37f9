"""Agent functions that misbehave in a real run, each beside one that does not: they fail alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.job import assert_nothing_left, rows, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

AGENT = """
import asyncio, os, sys, threading, time
from miles_lite.environments import single_turn


async def run(*, prompt, **given):
    how = prompt.split()[-1]
    if how == "exits":
        await asyncio.create_task(sub())
    if how == "cancels":
        raise asyncio.CancelledError
    if how == "blocks":
        time.sleep(30)
    if how == "spins":
        while True:
            pass
    if how == "floods":
        while True:
            print("x" * 100_000)
    if how == "forks" and os.fork() == 0:
        return {}
    if how == "ends" and not os.path.exists(MARK):
        open(MARK, "w").close()
        os._exit(3)
    if how == "locks":
        return {"lock": threading.Lock()}
    await single_turn.run(prompt=prompt, **given)
    return {}


async def sub():
    sys.exit(3)
"""
FAILED = {
    "exits": "SystemExit",
    "cancels": "CancelledError",
    "blocks": "blocked the event loop",
    "spins": "blocked the event loop",
    "floods": "OutputError",
    "locks": "TypeError",
}


def test_each_fails_alone(tiny_model: Path, run_dir: Path, mark: str, tmp_path: Path) -> None:
    agent, prompts = tmp_path / "agent.py", tmp_path / "prompts.jsonl"
    agent.write_text(AGENT.replace("MARK", repr(str(tmp_path / "ended"))))
    hows = [*FAILED, "forks", "ends", *(f"well{n}" for n in range(8))]
    prompts.write_text("".join(json.dumps({"input": f"go {how}", "label": "a"}) + "\n" for how in hows))
    flags = "--rm-type contains --label-key label --n-samples-per-prompt 1 --num-rollout 1 --rollout-timeout 15 "
    flags += f"--rollout-num-gpus 1 --rollout-batch-size 10 --over-sampling-batch-size {len(hows)} --device cpu "
    flags += "--rollout-max-response-len 8 --rollout-max-context-len 256"
    paths = ["--hf-checkpoint", tiny_model, "--prompt-data", prompts, "--run-dir", run_dir]
    paths += ["--custom-agent-function-path", f"{agent}:run"]
    run("rollout", [*flags.split(), *map(str, paths)], mark=mark, log=tmp_path / "log")
    lines = [json.loads(line) for line in (run_dir / "failures.jsonl").read_text().splitlines()]
    ended = {hows[line["prompt_row"] - 1]: line["why"] for line in lines if line["where"] == "agent"}
    assert ended.keys() <= FAILED.keys(), lines
    assert all(FAILED[how] in why for how, why in ended.items()), lines
    assert FAILED.keys() - ended.keys() <= {"blocks"} or FAILED.keys() - ended.keys() <= {"spins"}, "one ends the wait"
    assert any(row.get("rollout/reward") is not None for row in rows(run_dir))
    assert_nothing_left(mark)
