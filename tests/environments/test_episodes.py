"""The two loops, on a real session: what ends an episode, what it earns, and where it breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments.episodes import Step
from miles_lite.errors import UserError, Where
from miles_lite.job.precheck import check_inputs
from miles_lite.rollout.metrics import rollout_metrics
from miles_lite.rollout.prompts import open_source
from miles_lite.sample import Group, Rollout, Status
from tests.environments.played import broken, given, play
from tests.metric_names import undocumented

TEXT = """
import asyncio
from miles_lite.environments.episodes import Begun, Step, TextLoop, ToolLoop, total_of
from miles_lite.environments.tasks import Tasks

CLOSED = []


class Count:
    def __init__(self, task, args):
        self.task, self.args, self.said = task, args, 0

    async def begin(self):
        if self.args.get("breaks") == "begin":
            raise OSError("no room")
        tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
        messages = [{"role": "user", "content": f"count from {self.task.place}" * self.args.get("times", 1)}]
        return Begun(messages, tools if "tools" in self.args else None)

    async def step(self, said):
        self.said += 1
        if self.args.get("breaks") == "step":
            raise ConnectionError("lost")
        if "says" in self.args:
            return Step(**{"observation": "so", "reward": 1.0, "done": True} | self.args["says"])
        return Step(f"you said {said}", reward=0.25 * self.said, done="stop" in said)

    async def call(self, name, given):
        self.said += 1
        return Step(f"{name} {sorted(given)}", reward=None if self.said == 1 else 1.0, done=given.get("end", False))

    async def close(self):
        CLOSED.append(self.task.place)


def make(argument, args, /, *, seed):
    loop = ToolLoop if "tools" in args else TextLoop
    return loop(
        tasks=Tasks("count", lambda split: 4, seed),
        max_turns=args.get("max_turns", 3),
        total=total_of(args, "sum"),
        begin=lambda task: Count(task, args),
    )
"""


@pytest.fixture
def count(tmp_path: Path) -> str:
    file = tmp_path / "count.py"
    file.write_text(TEXT)
    return f"{file}:make"


def config(count: str, args: dict[str, Any] | None = None) -> Any:
    return given(count, args or {}, "--tito-allowed-append-roles", "tool", "user")


def test_an_episode_goes_on_to_its_end_and_earns_what_its_steps_gave(tiny_model: Path, count: str) -> None:
    said = ["one", "two and stop"]
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return said[turn]

    (rollout,) = play(tiny_model, config(count), say)
    assert (rollout.status, rollout.reward, rollout.failure) == (Status.COMPLETED, 0.75, None)
    assert "count from 0" in asked[0]
    assert "you said one" in asked[1]
    assert rollout.metadata["turns"] == 2
    assert rollout.metadata["environment"]["numbers"] == {"finished": 1.0}
    (sample,) = rollout.samples
    assert sample.trained_tokens > 4
    assert rollout.spans.tool is not None
    logged = rollout_metrics([Group(index=0, prompt={}, rollouts=[rollout])], [])
    assert logged["environment/count/reward"] == 0.75
    assert logged["environment/count/turns"] == logged["agent/turns_mean"] == 2
    assert (logged["environment/count/rollouts"], logged["environment/count/finished"]) == (1, 1)
    assert not undocumented(logged)


def test_an_episode_ends_after_its_turns_where_it_is_cut_and_where_the_context_is_full(
    tiny_model: Path, count: str
) -> None:
    (rollout,) = play(tiny_model, config(count), lambda turn, text: "again")
    assert (rollout.metadata["turns"], rollout.reward) == (3, 1.5)
    assert rollout.metadata["environment"]["numbers"] == {"finished": 0.0}
    (cut,) = play(tiny_model, config(count, {"total": "last"}), lambda turn, text: None if turn else "again")
    assert (cut.status, cut.metadata["turns"], cut.reward) == (Status.TRUNCATED, 2, 0.5)
    (full,) = play(tiny_model, config(count, {"max_turns": 50}), lambda turn, text: "again " * 200)
    assert full.failure is None
    assert 2 <= full.metadata["turns"] < 50


@pytest.mark.parametrize(("breaks", "why"), [("begin", "OSError: no room"), ("step", "ConnectionError: lost")])
def test_what_an_environment_raises_is_its_failure_and_no_reward(
    tiny_model: Path, count: str, breaks: str, why: str
) -> None:
    (rollout,) = play(tiny_model, config(count, {"breaks": breaks}), lambda turn, text: "x")
    assert rollout.reward is None
    assert rollout.failure is not None
    assert rollout.failure.where is Where.ENVIRONMENT
    assert rollout.failure.why.endswith(why)


@pytest.mark.parametrize("name", ["observation", "reward", "done"])
@pytest.mark.parametrize("value", [{"a": 1}, ["x"], "false", float("nan"), float("inf"), 7.5, True, None])
def test_what_a_step_says_is_taken_as_it_is_or_is_the_environments_failure(name: str, value: object) -> None:
    """Nothing is made of what is none: "false" is not true, no dictionary is text, no reward is guessed."""
    kinds: dict[str, tuple[type, ...]] = {"observation": (str,), "reward": (int, float, type(None)), "done": (bool,)}
    meant = isinstance(value, kinds[name]) and value not in (float("inf"),) and value == value
    said: Any = {"observation": "so", name: value}
    if meant:
        assert getattr(Step(**said), name) == value
    else:
        with pytest.raises(ValueError, match="this is"):
            Step(**said)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"says": {"done": "false"}}, "whether an episode is done is true or false, and this is 'false'"),
        ({"says": {"observation": "\ud800", "done": False}}, "what it says cannot be sent"),
        ({"times": 3000}, "its first words are too long"),
    ],
)
def test_what_an_environment_says_that_nobody_can_read_is_its_failure(
    tiny_model: Path, count: str, args: dict[str, Any], why: str
) -> None:
    (rollout,) = play(tiny_model, config(count, args), lambda turn, text: "x")
    assert why in broken(rollout)


MADE = {
    "raise RuntimeError('no make')": "cannot be made: RuntimeError: no make",
    "raise SystemExit(4)": "cannot be made: SystemExit: 4",
    "return None": "what it made, None, has no agent, reward, rows",
    "return Odd(-1)": "prompt data: environment:train: ValueError",
    "return Odd('x')": "prompt data: environment:train: TypeError",
    "return Odd(2)": "train, task 0: KeyError: 'no row'",
}
ODD = """
class Odd:
    reward = None

    async def agent(self, *given, **named):
        pass

    def __init__(self, size):
        self.size = size

    def rows(self, split):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, place):
        raise KeyError("no row")


def make(argument, args, /, *, seed):
    """


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("prompts", [True, False])
def test_whatever_is_wrong_with_ones_own_is_said_before_anything_starts(
    made: str, prompts: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """Also where its prompts are of another source."""
    (tmp_path / "odd.py").write_text(ODD + made)
    (tmp_path / "rows.jsonl").write_text('{"input": "x"}\n')
    source = [] if prompts else ["--prompt-data", str(tmp_path / "rows.jsonl")]
    flags = ["--hf-checkpoint", str(tiny_model), "--run-dir", str(tmp_path / "run")]
    config = given(f"{tmp_path}/odd.py:make", None, *flags, *source)
    if not prompts and "Odd" in made:
        check_inputs(config)
        return
    with pytest.raises(UserError, match=re.escape(MADE[made])):
        check_inputs(config)


def test_a_slice_that_is_none_is_no_split(count: str) -> None:
    with pytest.raises(UserError, match=r"environment:train@\[x\]: expected environment:SPLIT@\[FROM:TO\]"):
        open_source(given(count, None, "--prompt-data", "environment:train@[x]").data)


def test_tools_are_called_and_an_answer_without_a_call_ends_it(tiny_model: Path, count: str) -> None:
    def rollout_of(*said: str) -> Rollout:
        return play(tiny_model, config(count, {"tools": 1}), lambda turn, text: said[turn])[0]

    call = '<tool_call>\n{"name": "add", "arguments": {"b": 1, "a": 2}}\n</tool_call>'
    ended = rollout_of(call, call.replace('"b": 1', '"end": true'))
    assert (ended.reward, ended.metadata["turns"], ended.metadata["tool_calls"]) == (1.0, 2, 2)
    talked = rollout_of(call, "nothing more")
    assert (talked.reward, talked.metadata["response"], talked.metadata["tool_calls"]) == (0.0, "nothing more", 1)
    assert set(talked.spans.tools) == {"add"}
    assert 0 < talked.spans.tools["add"] < talked.finished_at - talked.started_at
    assert talked.spans.prefill is None, "its engine does not say"


def test_the_documented_one_of_ones_own_is_played(tiny_model: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python own-environment\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    config = given(f"{tmp_path}/mine.py:make:3", {"max_turns": 3}, "--tito-allowed-append-roles", "user")
    (won,) = play(tiny_model, config, lambda turn, text: str(turn + 1))
    assert (won.reward, won.metadata["environment"]["label"]) == (1.0, "guess")
    (lost,) = play(tiny_model, config, lambda turn, text: "none")
    assert (lost.reward, lost.metadata["turns"]) == (0.0, 3)
