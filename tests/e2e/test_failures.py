"""Failures of the infrastructure change no learning curve; an incident ends a run with its cause, and it goes on."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import pytest

from miles_lite.report.alarms import alarms
from miles_lite.report.record import read_record
from tests.e2e.job import assert_nothing_left, ended, run, start, values, wait_for
from tests.e2e.letters import flags

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SEEDS = (1, 2, 3)
BATCH = ("--rollout-batch-size", "4", "--n-samples-per-prompt", "8")


@pytest.mark.timeout(4000)
def test_failures_in_15_of_100_episodes_leave_the_learning_curve_where_it_is(tmp_path: Path, mark: str) -> None:
    """Of three seeds each: the difference of the means of the last five steps is within three standard errors."""
    ends: dict[float, list[float]] = {0.0: [], 0.15: []}
    for share, found in ends.items():
        for seed in SEEDS:
            folder = tmp_path / f"{share}-{seed}"
            folder.mkdir()
            seeds = ["--seed", str(seed), "--rollout-seed", str(seed), "--rollout-shuffle", "--num-rollout", "15"]
            run("train", flags(folder, *BATCH, *seeds, failures=share), mark=mark, log=folder / "log", timeout=600)
            rewards = values(folder / "run", "rollout/raw_reward")
            assert sum(rewards[-5:]) > 1.3 * sum(rewards[:5]), f"it learns: {rewards}"
            found.append(statistics.fmean(rewards[-5:]))
            seen = [alarm.rule for alarm in alarms(read_record(folder / "run"))]
            assert ("failures" in seen[:1]) == bool(share), "what breaks comes first, and only where something does"
            if share:
                assert sum(values(folder / "run", "rollout/retried/count_environment")) > 0.05 * 15 * 32
    print(ends)
    spread = sum(statistics.variance(found) for found in ends.values()) / len(SEEDS)
    assert abs(statistics.fmean(ends[0.15]) - statistics.fmean(ends[0.0])) <= max(3 * spread**0.5, 0.03)


@pytest.mark.timeout(1200)
def test_an_incident_ends_a_run_with_its_cause_and_it_goes_on_afterwards(tmp_path: Path, mark: str) -> None:
    log, save, steps = tmp_path / "log", str(tmp_path / "checkpoints"), 12
    given = flags(tmp_path, *BATCH, "--num-rollout", str(steps), "--save", save, "--save-interval", "1", failures=0.0)
    process = start("train", given, mark=mark, log=log)
    wait_for("two steps", lambda: len(done(tmp_path)) > 1, timeout=400, process=process, log=log)
    (tmp_path / "incident").touch()
    assert ended(process, log, within=400) == 2, log.read_text()[-6000:]
    assert_nothing_left(mark)
    text = log.read_text()
    assert "more than --max-failure-share 0.8: environment x" in text, text[-3000:]
    assert "the container was lost" in text
    assert "Traceback" not in text, text[-6000:]
    (tmp_path / "incident").unlink()
    run("train", [*given, "--load", save], mark=mark, log=tmp_path / "again", timeout=600)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == steps
    accounts = {end: summary[f"prompts_{end}"] for end in ("trained", "filtered", "failed", "quarantined", "unused")}
    assert summary["prompts_started"] == sum(accounts.values()), accounts
    assert accounts["trained"] == 4 * steps
    assert_nothing_left(mark)


def done(folder: Path) -> list[float]:
    time.sleep(0.2)
    return values(folder / "run", "perf/step_time")
