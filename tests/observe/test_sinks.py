"""Sinks: what lands on disk, and that no sink can stop a run."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson
import psutil
import pytest

from miles_lite.config.tracking import Logging
from miles_lite.observe.sinks import JsonlSink, Sinks, open_sinks
from miles_lite.observe.wandb_sink import wandb_folder
from miles_lite.report.history import read_history, series
from tests.processes import kill, running_after


def test_jsonl_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    sinks = open_sinks(Logging(), config={}, run_dir=tmp_path / "run")
    sinks.log({"rollout/reward": 0.5, "rollout/odd": math.nan}, step=3, step_key="rollout/step")
    row = orjson.loads((tmp_path / "run" / "metrics.jsonl").read_bytes())
    assert row.pop("time") > 0
    assert row == {"rollout/step": 3, "rollout/reward": 0.5, "rollout/odd": None}
    sinks.close()


def test_a_resumed_run_appends_and_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"rollout/step":0,"a":1.0}\n{"rollout/step":1,"a":')
    sink = JsonlSink(path)
    sink.log({"a": 2.0}, step=1, step_key="rollout/step")
    sink.log({"a": 3.0}, step=1, step_key="rollout/step")
    sink.close()
    assert series(read_history(path), "a", step_key="rollout/step") == {0: 1.0, 1: 3.0}


def test_a_full_disk_costs_rows_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    sinks = Sinks([JsonlSink(Path("/dev/full"))])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            sinks.log({"a": 1.0}, step=step, step_key="rollout/step")
        assert len(caplog.records) == 1
        assert "No space left" in caplog.text
        sinks.close()
    assert "lost 3 rows" in caplog.text


class Broken:
    """A backend whose connection is gone."""

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        raise RuntimeError("connection lost")

    def close(self) -> None:
        raise RuntimeError("connection lost")


def test_a_broken_sink_stops_neither_the_run_nor_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    sinks = Sinks([Broken(), JsonlSink(path)])
    sinks.log({"a": 1.0}, step=0, step_key="rollout/step")
    sinks.close()
    assert len(read_history(path)) == 1
    assert "Broken did not close cleanly" in caplog.text


def test_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(Logging(use_tensorboard=True), config={}, run_dir=tmp_path)
    sinks.log({"rollout/reward": 0.25}, step=7, step_key="rollout/step")
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("rollout/reward")] == [(7, 0.25)]


def test_wandb_disabled_starts_nothing(tmp_path: Path) -> None:
    options = Logging(use_wandb=True, wandb_mode="disabled")
    open_sinks(options, config={}, run_dir=tmp_path).close()
    assert wandb_folder(tmp_path) is None


@pytest.mark.e2e
def test_wandb_offline_lies_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["miles-lite", "--sglang-api-key", "s3cret", "--sglang-admin-api-key=s3cret", "--seed", "77012"]
    monkeypatch.setattr(sys, "argv", argv)
    options = Logging(use_wandb=True, wandb_mode="offline", wandb_group="grpo")
    sinks = open_sinks(options, config={"optimizer": {"lr": 1e-3}}, run_dir=tmp_path)
    sinks.log({"rollout/reward": 0.5}, step=0, step_key="rollout/step")
    sinks.log({"train/loss": 0.1}, step=0, step_key="train/step")
    sinks.close()
    folder = wandb_folder(tmp_path)
    assert folder is not None
    assert folder.name.startswith("offline-run-")
    recorded = next(folder.glob("*.wandb")).read_bytes()
    assert b"rollout/reward" in recorded
    assert b"train/loss" in recorded
    assert b"77012" in recorded
    assert b"s3cret" not in recorded
    assert sys.argv == argv


@pytest.mark.e2e
def test_wandb_dying_midway_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = set(psutil.Process().children())
    sinks = open_sinks(Logging(use_wandb=True, wandb_mode="offline"), config={}, run_dir=tmp_path)
    started = set(psutil.Process().children()) - before
    kill(started)
    assert not running_after(started)
    for step in range(3):
        sinks.log({"train/loss": 0.1}, step=step, step_key="train/step")
    sinks.close()
    assert len(read_history(tmp_path / "metrics.jsonl")) == 3
    assert "WandbSink could not log" in caplog.text or "WandbSink did not close cleanly" in caplog.text


def test_it_is_known_where_people_see_a_run() -> None:
    class Shown(Broken):
        page: str | None = "https://wandb.example/run"

        def alert(self, title: str, text: str) -> None: ...
        def step_ended(self, step: int) -> None: ...
        def failed(self) -> None: ...

    class Unseen(Shown):
        page: str | None = None

    assert Sinks([]).page is Sinks([], tellers=[Unseen()]).page is None
    assert Sinks([], tellers=[Unseen(), Shown()]).page == "https://wandb.example/run"
