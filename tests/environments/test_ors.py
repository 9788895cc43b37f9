"""A real server of the Open Reward Standard on loopback, and the real client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from miles_lite.errors import UserError, Where
from miles_lite.rollout.prompts import load_prompts, open_source
from tests.environments.played import given, play
from tests.environments.servers import ASKED, GUESSES, serving

pytest.importorskip("ors", reason="make setup-dev")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("ors", tmp_path_factory.mktemp("ors") / "log") as url:
        yield url


def guess(number: object) -> str:
    arguments = json.dumps({"number": number})
    return f'<tool_call>\n{{"name": "guess", "arguments": {arguments}}}\n</tool_call>'


def halving(turn: int, text: str) -> str:
    bounds = [1, 9]
    for number, said in re.findall(r'"number": (\d+)\D*?(higher|lower)', text):
        bounds = [int(number) + 1, bounds[1]] if said == "higher" else [bounds[0], int(number) - 1]
    return guess(sum(bounds) // 2)


def test_a_tasks_tools_are_called_and_its_last_reward_is_earned(tiny_model: Path, server: str) -> None:
    config = given(f"ors:{server}/guessing")
    assert len(open_source(config.data)) == 200
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return halving(turn, text)

    played = play(tiny_model, config, say, tasks=12)
    assert all(rollout.failure is None for rollout in played)
    assert {rollout.reward for rollout in played} == {0.0, 1.0}
    assert ASKED in asked[0]
    offered = re.search(r'\{"type": "function".*\}', asked[0])
    assert offered is not None
    function = json.loads(offered[0])["function"]
    assert (function["name"], function["description"]) == ("guess", "Guess it.")
    assert function["parameters"]["properties"]["number"]["type"] == "integer"
    assert all(rollout.metadata["tool_calls"] <= GUESSES for rollout in played)
    assert played[0].metadata["environment"]["label"] == "ors.guessing"


def test_a_wrong_call_is_answered_and_a_lost_server_is_the_environments_failure(
    tiny_model: Path, server: str, tmp_path: Path
) -> None:
    said = [guess("many"), '<tool_call>\n{"name": "ask", "arguments": {}}\n</tool_call>', "I give up"]
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return said[turn]

    (gave_up,) = play(tiny_model, given(f"ors:{server}/guessing"), say)
    assert (gave_up.failure, gave_up.reward, gave_up.metadata["turns"]) == (None, 0.0, 3)
    assert all("<tool_response>\nerror: " in text for text in asked[1:])
    with serving("ors", tmp_path / "log") as url:
        config = given(f"ors:{url}/guessing", {"tool_timeout": 5})
        open_source(config.data)
    (lost,) = play(tiny_model, config, halving)
    assert (lost.reward, lost.failure and lost.failure.where) == (None, Where.ENVIRONMENT)


def test_splits_are_the_servers(server: str) -> None:
    data = given(f"ors:{server}/guessing").data
    assert len(load_prompts("environment:test@[:7]", data)) == 7
    for spec, source, message in (
        (f"ors:{server}/guessing", "environment:dev", "no split dev; there are train, test"),
        (f"ors:{server}/other", "environment:train", f"ors:{server}/other: "),
        ("ors:guessing", "environment:train", "give URL/ENVIRONMENT"),
    ):
        with pytest.raises(UserError, match=message):
            load_prompts(source, given(spec).data)
