"""`miles-lite serve` that is ended while it starts, and `miles-lite rollout`, on real parts."""

from __future__ import annotations

import gzip
import json
import os
import signal
from pathlib import Path

import pytest

from miles_lite.traces import atraj
from tests.e2e.job import Prepared, assert_nothing_left, ended, run, start, values, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_ctrl_c_while_engines_start_ends_them(tiny_model: Path, run_dir: Path, mark: str, tmp_path: Path) -> None:
    log, engine = tmp_path / "log", run_dir / "logs" / "engine-0.0.log"
    flags = ["--hf-checkpoint", str(tiny_model), "--device", "cpu", "--run-dir", str(run_dir)]
    process = start("serve", flags, mark=mark, log=log)
    wait_for("the engine's log", engine.is_file, timeout=100, process=process, log=log)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, log) == 130
    text = log.read_text()
    assert "starting 1 engine(s)" in text
    assert "\ninterrupted" in text
    assert "ready" not in text
    assert "Traceback" not in text
    assert_nothing_left(mark)


def test_rollout_generates_and_scores_without_training_and_training_goes_without_engines(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    kept, saved = tmp_path / "kept", str(tmp_path / "saved" / "{rollout_id}.pt")
    flags = prepared.flags(run_dir, "--num-rollout", "1", "--none-reward-policy", "zero", "--log-passrate")
    halves = ["--trajectory-dir", str(kept), "--save-debug-rollout-data", saved]
    output = run("rollout", [*flags, *halves], mark=mark, log=tmp_path / "log")
    assert "rollout/reward" in output
    assert "passrate/pass@4" in output
    assert len(values(run_dir, "rollout/reward")) == 1
    assert not (run_dir / "weights").exists()
    trajectories = [atraj.read(path) for path in sorted(kept.iterdir())]
    assert len(trajectories) == 16
    assert {one.data["metadata"]["prompt"]["input"] for one in trajectories} <= _inputs(prepared)
    rewards = [one.reward or 0.0 for one in trajectories]
    assert sum(rewards) / 16 == pytest.approx(values(run_dir, "rollout/reward")[0])
    for one in trajectories:
        assert [step.role for step in one.paths()[0]][:3] == ["system", "user", "assistant"]
        assert next(one.sequences())[1].sum() == sum(len(step.ids) for step in one.paths()[0] if step.sampled)
    assert_nothing_left(mark)

    traced = ["--use-pytorch-profiler", "--profile-step-start", "0", "--profile-step-end", "1"]
    alone = prepared.flags(tmp_path / "alone", "--num-rollout", "1", "--load-debug-rollout-data", saved, *traced)
    output = run("train", alone, mark=mark, log=tmp_path / "log2")
    assert f"model: {tmp_path / 'alone' / 'model'}" in output
    assert len(values(tmp_path / "alone", "train/loss")) == 1
    assert values(tmp_path / "alone", "train/train_rollout_logprob_abs_diff_max")[0] <= 1e-4
    assert values(tmp_path / "alone", "train/logprob_gap/numerics_share") == [1.0]
    assert min(*values(tmp_path / "alone", "perf/fetch_time"), *values(tmp_path / "alone", "perf/optimizer_time")) > 0
    for rank in range(2):
        trace = (tmp_path / "alone" / "profile" / f"trace_rank_{rank:05d}.json.gz").read_bytes()
        assert "aten::mm" in {event["name"] for event in json.loads(gzip.decompress(trace))["traceEvents"]}
    assert_nothing_left(mark)


def _inputs(prepared: Prepared) -> set[str]:
    return {json.loads(line)["input"] for line in (prepared.folder / "train.jsonl").read_text().splitlines()}
