"""A real OpenEnv server on loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from miles_lite.errors import Where
from tests.environments.played import given, play
from tests.environments.servers import ASKED, GUESSES, OPENENV, serving

pytestmark = pytest.mark.skipif(not OPENENV.exists(), reason="make setup-environments")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("openenv", tmp_path_factory.mktemp("openenv") / "log") as url:
        yield url


def halving(turn: int, text: str) -> str:
    bounds = [1, 9]
    for number, said in re.findall(r"(\d+)<\|im_end\|>\s*<\|im_start\|>user\s+(higher|lower)", text):
        bounds = [int(number) + 1, bounds[1]] if said == "higher" else [bounds[0], int(number) - 1]
    return str(sum(bounds) // 2)


def test_an_episode_is_reset_with_its_seed_and_stepped_to_its_end(tiny_model: Path, server: str) -> None:
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return halving(turn, text)

    config = given(f"openenv:{server}", {"concurrency": 2})
    played = play(tiny_model, config, say, tasks=12)
    assert all(rollout.failure is None for rollout in played)
    assert {rollout.reward for rollout in played} == {0.0, 1.0}
    assert ASKED in asked[0]
    assert all(rollout.metadata["turns"] <= GUESSES for rollout in played)
    again = play(tiny_model, config, halving, tasks=12)
    assert [each.reward for each in again] == [each.reward for each in played], "a seed is a task"


def test_an_action_may_be_json_and_a_refusal_is_the_environments_failure(tiny_model: Path, server: str) -> None:
    said = ["5", "no json", '{"message": "no number"}']
    as_json = given(f"openenv:{server}", {"action": "json"})
    (played,) = play(tiny_model, as_json, lambda turn, text: said[turn + 1])
    assert (played.reward, played.metadata["turns"], played.failure) == (0.0, 2, None)
    (refused,) = play(tiny_model, given(f"openenv:{server}", {"action": "move"}), lambda turn, text: "5")
    assert (refused.reward, refused.failure and refused.failure.where) == (None, Where.ENVIRONMENT)


def test_a_lost_server_is_the_environments_failure(tiny_model: Path, tmp_path: Path) -> None:
    with serving("openenv", tmp_path / "log") as url:
        config = given(f"openenv:{url}")
        play(tiny_model, config, halving)
    (lost,) = play(tiny_model, config, halving)
    assert (lost.reward, lost.failure and lost.failure.where) == (None, Where.ENVIRONMENT)
