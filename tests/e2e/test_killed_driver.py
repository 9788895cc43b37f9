"""A driver that is killed again and again, at random moments, trains each prompt as often as one that is left alone;
and goes on with other sizes, too."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from miles_lite.rollout import dump
from tests.e2e.job import assert_nothing_left, left_running, run, start, wait_for
from tests.e2e.letters import WORDS, flags

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(4000)]

KILLS = int(os.environ.get("MILES_LITE_TEST_KILLS", "20"))
EPOCHS, GROUPS = 4, 3
STEPS = EPOCHS * len(WORDS) // GROUPS
LATEST = "latest_checkpointed_iteration.txt"


def test_a_driver_that_is_killed_at_random_moments_drops_and_repeats_no_prompt(tmp_path: Path, mark: str) -> None:
    """What is trained is what was dumped of each step last; left alone, a run deals each prompt once an epoch."""
    chance, save, dumped = random.Random(0), tmp_path / "checkpoints", tmp_path / "run" / "rollouts"
    given = flags(tmp_path, "--rollout-batch-size", str(GROUPS), "--n-samples-per-prompt", "2", "--rollout-shuffle")
    given += ["--num-rollout", str(STEPS), "--max-weight-staleness", "1", "--use-rollout-logprobs"]
    given += ["--save", str(save), "--save-interval", "1", "--save-debug-rollout-data", f"{dumped}/{{rollout_id}}.pt"]

    def resumed() -> list[str]:
        return [*given, "--load", str(save)] if (save / LATEST).exists() else given

    reached = []
    for number in range(KILLS):
        process = start("train", resumed(), mark=mark, log=tmp_path / f"log-{number}")
        for _ in range(chance.randint(0, 3)):  # with none, wherever it is on its way to the first step
            seen = newest(dumped)
            while newest(dumped) == seen and process.poll() is None:
                time.sleep(0.1)
        time.sleep(chance.uniform(0.0, 4.0))
        assert process.poll() in (None, 0), (tmp_path / f"log-{number}").read_text()[-6000:]
        process.kill()
        process.wait(30)
        assert not left_running(mark, within=60)
        reached.append((save / LATEST).read_text() if (save / LATEST).exists() else "")
    run("train", resumed(), mark=mark, log=tmp_path / "log", timeout=900)
    print(reached)
    assert KILLS < 4 or any(reached), "no attempt went on from a checkpoint"
    trained = [group.prompt["row"] for step in range(STEPS) for group in dump.read(dumped / f"{step}.pt")]
    assert Counter(trained) == Counter(dict.fromkeys(set(trained), EPOCHS))
    assert len(set(trained)) == len(WORDS)
    assert int((save / LATEST).read_text()) == STEPS - 1
    assert_nothing_left(mark)


def test_a_killed_run_goes_on_with_another_bound_batch_and_group_size(tmp_path: Path, mark: str) -> None:
    save, dumped = tmp_path / "checkpoints", tmp_path / "run" / "rollouts"
    given = flags(tmp_path, "--rollout-shuffle", "--save", str(save), "--save-interval", "1", "--use-rollout-logprobs")
    given += ["--save-debug-rollout-data", f"{dumped}/{{rollout_id}}.pt", "--num-rollout", "6"]
    sizes = {True: (4, 2, 2), False: (3, 3, 1)}
    more = {
        before: f"--rollout-batch-size {batch} --n-samples-per-prompt {members} --max-weight-staleness {bound}".split()
        for before, (batch, members, bound) in sizes.items()
    }
    process = start("train", [*given, *more[True]], mark=mark, log=tmp_path / "log")
    wait_for("a checkpoint", (save / LATEST).exists, timeout=300, process=process, log=tmp_path / "log")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert not left_running(mark, within=60)
    saved = int((save / LATEST).read_text()) + 1
    run("train", [*given, *more[False], "--load", str(save)], mark=mark, log=tmp_path / "again", timeout=600)
    groups = {step: dump.read(dumped / f"{step}.pt") for step in range(6)}
    for step, of in groups.items():
        batch, members, bound = sizes[step < saved]
        assert [len(group.rollouts) for group in of] == [members] * batch
        sampled = [sample for group in of for rollout in group.rollouts for sample in rollout.fetch()]
        assert all(step - sample.weight_versions[sample.loss_mask == 1].min() <= bound for sample in sampled)
    rows = [group.prompt["row"] for of in groups.values() for group in of]
    assert len(set(rows)) == len(rows) == 4 * saved + 3 * (6 - saved)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    ends = {end: summary[f"prompts_{end}"] for end in ("trained", "filtered", "failed", "quarantined", "unused")}
    assert summary["prompts_started"] == sum(ends.values()), ends
    assert ends["trained"] == len(rows)
    assert_nothing_left(mark)


def newest(folder: Path) -> float:
    return max((file.stat().st_mtime for file in folder.glob("*.pt")), default=0.0)
