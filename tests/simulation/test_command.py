"""`miles-lite simulate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from miles_lite.cli import main
from miles_lite.simulation.scenario import Scenario

SCENARIO = """
engines: 2
sessions_per_engine: 16
steps: 4
task: {tokens_p50: 200, tokens_p99: 2000}
schedule: {rollout_batch_size: 4, n_samples_per_prompt: 4}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return str(path)


def test_every_combination_is_a_row_and_the_first_one_is_written(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, numbers = tmp_path / "gantt.png", tmp_path / "numbers.json"
    flags = ["--scenario", scenario, "--max-weight-staleness", "1", "2", "--rollout-concurrency", "16", "auto"]
    assert main(["simulate", *flags, "--gantt", str(picture), "--json", str(numbers)]) == 0
    assert sum("paced" in line for line in capsys.readouterr().out.splitlines()) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(numbers.read_text())
    assert told["max_staleness"] <= 1
    assert told["discarded"] == 0
    assert told["async_vs_sync"] > 0
    assert {"engine_busy", "trainer_busy"} <= told.keys()


def test_the_scenario_it_prints_is_the_one_it_reads(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--print-scenario"]) == 0
    assert msgspec.yaml.decode(capsys.readouterr().out, type=Scenario) == Scenario()
    assert main(["simulate", "--scenario", scenario, "--print-scenario"]) == 0
    printed = msgspec.yaml.decode(capsys.readouterr().out, type=Scenario)
    assert printed.schedule.rollout_batch_size == 4
    assert printed.engine == Scenario().engine


def test_a_number_may_be_written_without_a_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("engine: {sequence: 2e-5}\ntrainer: {tokens_per_second: 1e6}\n")
    assert main(["simulate", "--scenario", str(path), "--print-scenario"]) == 0
    printed = msgspec.yaml.decode(capsys.readouterr().out, type=Scenario)
    assert (printed.engine.sequence, printed.trainer.tokens_per_second) == (2e-5, 1e6)


@pytest.mark.parametrize(
    ("text", "flags", "told"),
    [
        ("engine: {spet: 1}", (), "spet"),
        ("steps: many", (), "steps"),
        ("steps: [", (), "scenario"),
        ("engines: 0", (), "engines"),
        ("engine: {kv_tokens: -1}", (), "kv_tokens"),
        ("engine: {kv_tokens: 1000}", (), "longest rollout"),
        ("engine: {step: .inf}", (), "step"),
        ("seed: -1", (), "seed"),
        ("task: {tokens_p99: 1}", (), "tokens_p99"),
        ("trainer: {mode: gently}", (), "mode"),
        ("trainer: {sync: 1, pause: 2}", (), "pause"),
        ("schedule: {pipeline_depth: 9}", (), "pipeline_depth"),
        (SCENARIO, ("--rollout-concurrency", "many"), "--rollout-concurrency"),
        (SCENARIO, ("--gantt", "picture.txt"), "--gantt"),
        (SCENARIO, ("--steps", "1"), "--steps"),
        ("task: {failures: 1.0}\nsteps: 2\nschedule: {rollout_batch_size: 1, n_samples_per_prompt: 1}", (), "no group"),
    ],
)
def test_bad_input_is_one_message_that_names_it(
    text: str, flags: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    assert main(["simulate", "--scenario", str(path), *flags]) == 2
    assert told in capsys.readouterr().err


def test_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--scenario", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
