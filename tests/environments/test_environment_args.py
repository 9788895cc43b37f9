"""What --environment-args may say is read in one way, by whichever environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from miles_lite.config.environments import arguments
from miles_lite.environments import installed, load
from miles_lite.environments.environment_args import AT_ONCE, SIZE, TIMEOUT, Argument, others, refuse_others
from miles_lite.environments.harness import bounded
from miles_lite.environments.tasks import Tasks
from miles_lite.errors import UserError
from miles_lite.process.json_types import Json

ANSWER = Argument("answer", str, "tag", choices=("tag", "text"))


def test_what_is_not_said_is_the_default_and_a_number_of_seconds_may_be_whole() -> None:
    assert (SIZE.of({}), AT_ONCE.of({}), AT_ONCE.by_default(16).of({}), TIMEOUT.of({})) == (1_000_000, None, 16, 1800.0)
    assert AT_ONCE.of({"at_once": None}) is None
    assert (SIZE.of({"size": 3}), ANSWER.of({"answer": "text"}), TIMEOUT.of({"timeout": 3})) == (3, "text", 3.0)
    assert isinstance(TIMEOUT.of({"timeout": 3}), float)
    assert others({"size": 3, "knob": 1}, (SIZE,)) == {"knob": 1}


@pytest.mark.parametrize(
    ("argument", "value", "why"),
    [
        (SIZE, "3", "size: expected int, found '3'"),
        (SIZE, 3.0, "size: expected int, found 3.0"),
        (SIZE, True, "size: expected int, found True"),
        (SIZE, None, "size: expected int, found None"),
        (SIZE, 0, "size: 0 must be at least 1"),
        (TIMEOUT, "1", "timeout: expected int or float, found '1'"),
        (TIMEOUT, 0, "timeout: 0 must be at least 0.001"),
        (TIMEOUT, float("nan"), "timeout: nan must be at least 0.001"),
        (ANSWER, "box", "answer: 'box' is none of tag, text"),
    ],
)
def test_what_is_none_of_its_values_is_named(argument: Argument[Json], value: Json, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--environment-args, {why}")):
        argument.of({argument.name: value})


def test_a_name_that_is_no_text_and_a_package_that_lacks_something_are_said() -> None:
    with pytest.raises(UserError, match="--environment-args: an argument's name is text, and 1 is none"):
        arguments("{1: 2}")
    with pytest.raises(UserError, match=r"--environment lacking: Could not import a\.B"), installed("lacking"):
        raise ImportError("Could not import a.B")
    with pytest.raises(UserError, match="--environment gem:x: needs gem-llm: pip install gem-llm"), installed("gem:x"):
        raise ImportError("no gem", name="gem")


OWN = """
class Mine:
    reward = None

    def rows(self, split):
        return [{"prompt": "go"}]

    async def agent(self, *, base_url, **_):
        return {"reward": 1.0}


def make(argument, args, /, *, seed):
    return Mine()
"""


@pytest.mark.parametrize(
    ("there", "here", "why"),
    [
        ("async def agent", "def agent", "its agent: is not async: write `async def`"),
        ("*, base_url, **_", "base_url", "its agent: cannot be called with"),
        ("async def agent", "async def agents", "has no agent"),
        ("reward = None", "reward = 0.5", "its reward: is not async"),
        ("reward = None", "async def reward(self): return 1", "its reward: cannot be called with"),
        ("return Mine()", "raise KeyError('k')", "cannot be made: KeyError: 'k'"),
        ("return Mine()", "return None", "has no agent, reward, rows"),
        ("argument, args, /, *, seed", "args", "cannot be called with"),
    ],
)
def test_an_environment_of_ones_own_that_could_not_be_played_is_said(
    there: str, here: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "whole.py").write_text(OWN)
    assert load(f"{tmp_path}/whole.py:make", None, seed=0).rows("train")[0]["prompt"] == "go"
    (tmp_path / "flawed.py").write_text(OWN.replace(there, here))
    with pytest.raises(UserError, match=re.escape(why)):
        load(f"{tmp_path}/flawed.py:make", None, seed=0)


def test_an_argument_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UserError, match="no 'sise'; there are size, timeout"):
        refuse_others({"size": 1, "sise": 1}, (TIMEOUT, SIZE))


def test_harnesses_are_bounded_as_they_are_told() -> None:
    async def run(task: object, model: object) -> Json:
        raise NotImplementedError

    tasks = Tasks("x", lambda split: 1, 0)
    assert bounded(run, {"timeout": 7}, tasks=tasks).seconds == 7.0
    with pytest.raises(UserError, match="at_once: 0 must be at least 1"):
        bounded(run, {"at_once": 0}, tasks=tasks)
