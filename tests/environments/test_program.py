"""A whole program plays: it has a task and the session's address, and leaves what it earned."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments.harness import Ended, Model
from miles_lite.environments.task_files import TaskFiles
from miles_lite.environments.tasks import Task
from miles_lite.errors import UserError, Where
from miles_lite.rollout.metrics import rollout_metrics
from miles_lite.rollout.prompts import open_source
from miles_lite.sample import Group
from tests.environments.played import broken, given, play

AGENT = """
import json, os, urllib.request

task = json.load(open("task.json"))
messages = [{"role": "user", "content": (task["row"] or {}).get("ask", f"seed {task['seed']}")}]
for turn in range(2):
    body = json.dumps({"model": "x", "messages": messages, "temperature": 0.1}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "sure?"}]
print(said)
"""
REWARD = 'open("reward.txt", "w").write(str(float(said == "yes")))\n'


@pytest.fixture
def agent(tmp_path: Path) -> str:
    (tmp_path / "agent.py").write_text(AGENT + REWARD)
    return f"program:{sys.executable} {tmp_path}/agent.py"


def test_its_conversation_is_the_sessions_and_what_it_leaves_is_the_reward(
    agent: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"ask": "is it?"}\n\n{"ask": "and this?"}\n')
    config = given(agent, {"tasks": str(tmp_path / "tasks.jsonl"), "name": "asking"})
    assert len(open_source(config.data)) == 2
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return ["hm", "yes"][turn]

    rollouts = play(tiny_model, config, say, tasks=2)
    assert [(each.reward, each.failure) for each in rollouts] == [(1.0, None)] * 2
    assert "is it?" in asked[0]
    assert "and this?" in asked[2]
    assert "sure?" in asked[1]
    (sample,) = rollouts[0].samples
    assert sample.trained_tokens > 4  # of both turns
    assert rollouts[0].metadata["response"] == "yes\n"
    logged = rollout_metrics([Group(index=0, prompt={}, rollouts=rollouts)], [])
    assert (logged["environment/asking/reward"], logged["environment/asking/rollouts"]) == (1.0, 2)
    (lost,) = play(tiny_model, config, lambda turn, text: "no")
    assert (lost.reward, lost.failure) == (0.0, None)


def test_without_a_file_a_task_is_its_seed(agent: str, tiny_model: Path) -> None:
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return "yes"

    config = given(agent, {"size": 3})
    assert len(open_source(config.data)) == 3
    play(tiny_model, config, say, tasks=3)
    seeds = [re.findall(r"seed \d+", text)[0] for text in asked]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("cat task.json; exit 7", "exit code 7, no reward: "),
        ("true", "exit code 0, no reward"),
        ("echo 1 > reward.txt; echo lost >&2; exit 3", "exit code 3, a reward: lost"),
        ("echo high > reward.txt", "JSONDecodeError"),
        ("echo NaN > reward.txt", "a step's reward is a finite number, and this is nan"),
        ('echo \'{"score": 1, "other": 2}\' > reward.json', "the tests' reward is no number"),
        ("sleep 60 & sleep 60; echo 1 > reward.txt", "took longer than 1 s"),
    ],
)
def test_one_that_breaks_hangs_or_says_no_reward_is_the_environments_failure(
    command: str, why: str, tiny_model: Path
) -> None:
    config = given(f"program:{command}", {"timeout": 1 if "sleep" in command else 60})
    (rollout,) = play(tiny_model, config, lambda turn, text: "x")
    assert why in broken(rollout)


def test_a_reward_without_a_word_to_the_model_trains_nothing(tiny_model: Path) -> None:
    (rollout,) = play(tiny_model, given("program:echo 1 > reward.txt"), lambda turn, text: "x")
    assert rollout.failure is not None
    assert rollout.failure.where is Where.AGENT
    assert not rollout.samples


@pytest.mark.parametrize(
    ("spec", "args", "rows", "why"),
    [
        ("program:", {}, None, "give its command"),
        ("program:true", {"sise": 1}, None, "no 'sise'"),
        ("program:true", {"tasks": "none.jsonl"}, None, "no split train: there is no train.jsonl in it"),
        ("program:true", {"tasks": "tasks.jsonl"}, "", "tasks.jsonl is empty"),
        (
            "program:true",
            {"tasks": "tasks.jsonl"},
            '{"a": 1}\n[2]\n',
            "tasks.jsonl, row 2: expected an object, found list",
        ),
        ("program:true", {"tasks": "tasks.jsonl"}, '{"a": 1}\n' * 2000 + '{"a"', "tasks.jsonl, row 2001: no JSON"),
        ("program:echo 'x", {}, None, "bash cannot read the command: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    spec: str, args: dict[str, Any], rows: str | None, why: str, tmp_path: Path
) -> None:
    if rows is not None:
        (tmp_path / "tasks.jsonl").write_text(rows)
    told = {name: str(tmp_path / value) if name == "tasks" else value for name, value in args.items()}
    with pytest.raises(UserError, match=re.escape(why)):
        open_source(given(spec, told).data)


def test_splits_are_files_and_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    for split, text in (("train", '{"a": 1}\n' * 3), ("test", '{"a": 1}\n')):
        (tmp_path / f"{split}.jsonl").write_text(text)
    command = "program:grep -q '\"a\": 1' task.json && echo 1 > reward.txt"
    config = given(command, {"tasks": str(tmp_path)})
    held_out = given(command, {"tasks": str(tmp_path)}, "--prompt-data", "environment:test")
    assert [len(open_source(each.data)) for each in (config, held_out)] == [3, 1]
    with pytest.raises(UserError, match="no split dev"):
        open_source(given(command, {"tasks": str(tmp_path)}, "--prompt-data", "environment:dev").data)
    (tmp_path / "more.jsonl").write_text('{"a": 1}\n' * 1000 + '{"a"\n{"a": 1}\n')
    lines = TaskFiles(tmp_path)
    assert lines.size("more") == 1002  # the first 1,000 and the last are looked at; the others when they are played
    with pytest.raises(UserError, match=r"more\.jsonl, row 1001: no JSON: Expecting ':' delimiter"):
        lines.row(Task("program", "more", 1000, 0))


def test_a_program_has_every_providers_address() -> None:
    variables = Model("http://h:1/sessions/s/v1", "key", {}).variables
    assert variables["OPENAI_BASE_URL"] == "http://h:1/sessions/s/v1"
    assert variables["ANTHROPIC_BASE_URL"] == variables["GOOGLE_GEMINI_BASE_URL"] == "http://h:1/sessions/s"
    assert json.dumps(variables).count('"key"') == 3


def test_a_harness_that_says_no_reward_has_not_ended() -> None:
    with pytest.raises(ValueError, match="said no reward"):
        Ended(None)  # type: ignore[arg-type]
