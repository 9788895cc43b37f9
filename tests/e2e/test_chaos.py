"""Everything that serves a run is killed once in it, and it ends as if nothing had been; after what it cannot do
without it goes on from its last checkpoint, or ends at once, with one message."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from miles_lite.rollout import dump
from miles_lite.traces import atraj
from tests.e2e.job import ROOT, Prepared, assert_nothing_left, ended, environment, marked_as, start, values, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

VICTIMS = {
    "agent worker": "ray::AgentWorker",
    "session worker": "miles_lite.session.server_main",
    "router process": "miles_lite.router.server_main",
    "session actor": "ray::SessionActor",
    "router actor": "ray::RouterActor",
    "scheduler": "sglang::scheduler",
    "engine actor": "ray::EngineActor",
}
"""What is killed, in this order, and how its process is called."""


def youngest(mark: str, called: str) -> psutil.Process:
    return max(marked_as(mark, called), key=lambda one: one.create_time())


def test_whatever_serves_a_run_may_be_killed_and_it_costs_no_prompt(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    log, kept, steps = tmp_path / "log", tmp_path / "kept", len(VICTIMS) + 3
    flags = prepared.flags(run_dir, "--num-rollout", str(steps), "--trajectory-dir", str(kept))
    process = start("train", flags, mark=mark, log=log)

    def wait(what: str, condition: Callable[[], object]) -> None:
        wait_for(what, condition, timeout=300, process=process, log=log)

    def kill(name: str) -> None:
        wait(f"the {name}", lambda: marked_as(mark, VICTIMS[name]))
        (victim, *_) = marked_as(mark, VICTIMS[name])
        victim.kill()

    def took(step: int) -> bool:
        return len(steps_of(run_dir)) > step

    for at, name in enumerate(VICTIMS):
        wait(f"step {at}", partial(took, at))
        time.sleep(0.5)  # into the next rollout
        kill(name)
    version = len(steps_of(run_dir)) + 1
    wait("a weight update", lambda: list((run_dir / "weights").glob(f"v{version}*")))
    kill("router process")
    assert ended(process, log, within=500) == 0, log.read_text()[-6000:]
    text = log.read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["prompts_started"] == summary["prompts_trained"] == 4 * steps, text[-6000:]
    assert summary["rollouts_failed"] == 0, (run_dir / "failures.jsonl").read_text()
    assert (run_dir / "reward.png").stat().st_size > 10_000
    assert values(run_dir, "rollout/weight_version/mean")[-1] == steps - 1
    assert max(values(run_dir, "rollout/engine_restarts")) == 2
    finished = Counter(
        made.data["metadata"]["rollout_index"]
        for made in map(atraj.read, kept.iterdir())
        if made.data["metadata"]["failure"] is None
    )
    assert finished == Counter(range(16 * steps)), "each rollout once"
    for what in ("the router", "session server 0", "agent worker 0"):
        assert f"{what} has ended; replacing it" in text
    assert "Traceback" not in text
    assert_nothing_left(mark)


NEEDED = {
    "train rank 1": "ray::TrainWorker",
    "the rollout manager": "ray::RolloutManager",
    "the engines' fleet": "ray::Fleet",
}
"""What a run cannot do without, and how its process is called."""


@pytest.mark.parametrize("victim", NEEDED)
def test_a_run_that_loses_what_it_cannot_do_without_ends_at_once_with_one_message_that_says_how_to_go_on(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path, victim: str
) -> None:
    log, save = tmp_path / "log", tmp_path / "checkpoints"
    flags = prepared.flags(run_dir, "--save", str(save), "--save-interval", "1", "--num-rollout", "40")
    flags += ["--max-restarts", "0"]
    process = start("train", flags, mark=mark, log=log)
    wait_for("two steps", lambda: len(steps_of(run_dir)) > 1, timeout=300, process=process, log=log)
    youngest(mark, NEEDED[victim]).kill()
    assert ended(process, log) == 1, log.read_text()[-6000:]
    assert_nothing_left(mark)
    text = log.read_text()
    assert "Traceback" not in text, text[-6000:]
    who = "|".join([r"train rank \d", *NEEDED])
    found = re.search(rf"^error: ({who}) has died: (.*)\n  Step (\d+) of 40 is lost. (.*)$", text, re.M)
    assert found, text[-3000:]
    assert found[1].startswith(victim.rstrip("01"))
    assert "was ended from outside (SIGKILL)" in found[2]
    saved = int((save / "latest_checkpointed_iteration.txt").read_text()) + 1
    assert int(found[3]) in (saved + 1, saved + 2)
    command = re.search(r"Go on from step (\d+), the last that was saved: miles-lite (.*)", found[4])
    assert command, found[4]
    again = shlex.split(command[2])
    again[again.index("--num-rollout") + 1] = str(saved + 1)
    done = subprocess.run(
        [sys.executable, "-m", "miles_lite", *again], env=environment(mark), cwd=ROOT, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["prompts_started"] == summary["prompts_trained"] == 4 * (saved + 1)
    assert_nothing_left(mark)


def test_a_run_that_loses_each_of_them_goes_on_by_itself(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    log, save, steps = tmp_path / "log", tmp_path / "checkpoints", 2 * len(NEEDED) + 2
    flags = prepared.flags(run_dir, "--save", str(save), "--save-interval", "1", "--num-rollout", str(steps))
    dumped = run_dir / "rollouts" / "{rollout_id}.pt"
    flags += ["--max-weight-staleness", "1", "--use-rollout-logprobs", "--save-debug-rollout-data", str(dumped)]
    process = start("train", flags, mark=mark, log=log)
    for at, called in enumerate(NEEDED.values()):
        wait_for(
            "two more steps", lambda at=at: len(steps_of(run_dir)) > 2 * at + 1, timeout=300, process=process, log=log
        )
        youngest(mark, called).kill()
        again = f"step .* of {steps} after"
        back = lambda at=at, again=again: len(re.findall(f"going on with {again} (\\d+) s", log.read_text())) > at  # noqa: E731
        wait_for("it to come back", back, timeout=300, process=process, log=log)
    assert ended(process, log, within=500) == 0, log.read_text()[-6000:]
    text = log.read_text()
    assert "Traceback" not in text, text[-6000:]
    for victim in NEEDED:
        assert re.search(rf"{victim} has died: .*SIGKILL.*\n  Step \d of {steps} is lost. Restart 1 of 3", text), victim
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["restarts"] == max(values(run_dir, "perf/restarts")) == len(NEEDED)
    assert summary["steps"] == steps
    assert summary["prompts_started"] == summary["prompts_trained"] == 4 * steps
    assert len(steps_of(run_dir)) <= steps + len(NEEDED), "more was done again than what followed the last checkpoint"
    kept = [group.prompt["row"] for step in range(steps) for group in dump.read(run_dir / "rollouts" / f"{step}.pt")]
    assert len(set(kept)) == 4 * steps, "a prompt was trained twice"
    rows = [json.loads(line) for line in (run_dir / "restarts.jsonl").read_text().splitlines()]
    assert [row["restart"] for row in rows] == [1, 2, 3]
    assert_nothing_left(mark)


def steps_of(run_dir: Path) -> list[float]:
    return values(run_dir, "perf/step_time")
