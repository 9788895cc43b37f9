"""Held-out datasets with settings of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from miles_lite.rollout.agent_sampling import eval_sampling
from miles_lite.rollout.prompts import load_held_out
from tests.config.helpers import NEEDED

TOLD = """
eval:
  defaults: {temperature: 0.6, n_samples_per_eval_prompt: 4}
  datasets:
    - {name: aime, path: PATH, rm_type: math, input_key: question, label_key: answer, top_k: 20}
    - {name: other, path: PATH, temperature: 0.1, max_response_len: 7, metadata_overrides: {level: 3}}
"""


def configured(folder: Path, text: str, *flags: str) -> Config:
    file = folder / "eval.yaml"
    file.write_text(text.replace("PATH", str(folder / "p.jsonl")))
    return parse([*NEEDED, "--eval-config", str(file), "--eval-interval", "1", *flags])[0]


def test_a_datasets_settings_count_over_the_defaults_and_these_over_flags(tmp_path: Path) -> None:
    flags = ["--eval-prompt-data", "plain", "x.jsonl", "--eval-temperature", "0.9", "--eval-top-p", "0.5"]
    config = configured(tmp_path, TOLD, *flags)
    options = config.evaluation
    assert list(options.datasets) == ["plain", "aime", "other"]
    assert [options.samples(name) for name in options.datasets] == [1, 4, 4]
    sampled = {name: eval_sampling(config.rollouts, options, name) for name in options.datasets}
    assert [each["temperature"] for each in sampled.values()] == [0.9, 0.6, 0.1]
    assert [each["top_p"] for each in sampled.values()] == [0.5, 0.5, 0.5]
    assert (sampled["aime"]["top_k"], sampled["other"]["max_new_tokens"]) == (20, 7)
    assert config.held_out("aime").label_key == "answer"
    assert config.held_out("plain") == config.data


def test_its_rows_name_its_rule(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": "q", "answer": "4", "metadata": {"a": 1}, "input": "i"}))
    config = configured(tmp_path, TOLD)
    (aime,) = load_held_out(config.evaluation.datasets["aime"], config, "aime")
    (other,) = load_held_out(config.evaluation.datasets["other"], config, "other")
    assert (aime.input, aime.label, aime.metadata) == ("q", "4", {"a": 1, "rm_type": "math"})
    assert other.metadata == {"a": 1, "level": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval: {}", "expected eval: {defaults"),
        ("eval: {datasets: [{name: a}]}", "dataset 1: needs a name and a path"),
        (
            "eval: {datasets: [{name: a, path: b, temprature: 1}]}",
            "a: unknown key temprature: did you mean temperature",
        ),
        ("eval: {datasets: [{name: a, path: b}, {name: a, path: b}]}", "a is there twice"),
        ("[", "cannot be read"),
    ],
)
def test_mistakes_are_said(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        _ = configured(tmp_path, text).evaluation.datasets
