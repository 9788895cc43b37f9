"""A real environment server of verifiers v1 on loopback, in its own Python, whose harness asks a real session."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments.verifiers import ended
from miles_lite.errors import UserError
from miles_lite.rollout.metrics import rollout_metrics
from miles_lite.rollout.prompts import open_source
from miles_lite.sample import Group
from tests.environments.played import broken, given, play
from tests.environments.servers import VERIFIERS, serving

needs_verifiers = pytest.mark.skipif(not VERIFIERS.exists(), reason="make setup-environments")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("verifiers", tmp_path_factory.mktemp("verifiers") / "log") as url:
        yield url.replace("http://", "tcp://")


def tasks(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    lines = [{"prompt": "guess", **row} for row in rows]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"tasks": str(folder / "tasks.jsonl")}


@needs_verifiers
def test_its_harness_plays_on_the_session_and_its_scoring_says_what_that_earned(
    server: str, tiny_model: Path, tmp_path: Path
) -> None:
    config = given(f"verifiers:{server}", tasks(tmp_path, {"number": 2}, {"number": 7}))
    assert len(open_source(config.data)) == 2
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return str(turn + 1)

    right, wrong = play(tiny_model, config, say, tasks=2)
    assert [(each.reward, each.failure) for each in (right, wrong)] == [(0.5, None), (0.0, None)]
    assert "guess" in asked[0]
    (sample,) = right.samples  # its two turns are one sequence, of the engine's own tokens
    assert sample.trained_tokens >= 4
    assert len(asked) == 2 + 3
    assert right.metadata["environment"]["numbers"] == {"guesses": 2.0, "right": 1.0}
    logged = rollout_metrics([Group(index=0, prompt={}, rollouts=[right, wrong])], [])
    assert (logged["environment/verifiers/reward"], logged["environment/verifiers/guesses"]) == (0.25, 2.5)


@needs_verifiers
def test_what_broke_or_was_not_scored_is_the_environments_failure(
    server: str, tiny_model: Path, tmp_path: Path
) -> None:
    flawed: list[dict[str, Any]] = [
        {"number": 1, "breaks": "harness"},
        {"number": 1, "breaks": "scoring"},
        {"number": "none"},
    ]
    config = given(f"verifiers:{server}", tasks(tmp_path, *flawed))
    played = play(tiny_model, config, lambda turn, text: "1", tasks=3)
    for rollout, why in zip(played, ("it broke", "the judge is gone", "ValidationError"), strict=True):
        assert why in broken(rollout)


@needs_verifiers
@pytest.mark.timeout(120)
def test_one_that_takes_too_long_is_the_environments_failure(server: str, tiny_model: Path, tmp_path: Path) -> None:
    """As one whose server is gone: there is nobody to say so."""
    config = given(f"verifiers:{server}", tasks(tmp_path, {"number": 9}) | {"timeout": 0.001})
    (rollout,) = play(tiny_model, config, lambda turn, text: "1")
    assert "took longer than 0.001 s" in broken(rollout)


@pytest.mark.parametrize(
    ("spec", "args", "why"),
    [
        ("verifiers:tcp://127.0.0.1:1", {}, "give its server's address"),
        ("verifiers:reverse-text", {"tasks": "x"}, "give its server's address"),
        ("verifiers:tcp://127.0.0.1:none", {"tasks": "x"}, "no environment server answers there"),
        ("verifiers:tcp://127.0.0.1:1", {"tasks": "x"}, "no environment server answers there"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    spec: str, args: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miles_lite.environments.verifiers.HEALTH_SECONDS", 0.5)
    with pytest.raises(UserError, match=re.escape(why)):
        open_source(given(spec, args).data)


REWARD = {"right": {"score": 1.0, "weight": 0.5}}
NONE = {"rewards": {"x": {"score": float("nan"), "weight": 1.0}}}
REPLY = {"head": {"ok": True}, "traces": [{"id": "a"}, {"id": "b"}]}


def test_the_rewards_of_several_agents_are_weighted_and_averaged() -> None:
    said = ended(REPLY, {"a": {"rewards": REWARD}, "b": {"rewards": {"x": {"score": 3.0, "weight": 0.5}}}, "c": {}})
    assert (said.reward, said.numbers) == (1.0, {"right": 1.0, "x": 3.0})


@pytest.mark.parametrize(
    ("reply", "traces", "why"),
    [
        ({"head": None}, {}, "it is not ok"),
        ({"head": {"ok": False, "errors": [{"type": "EnvError", "message": "gone"}]}}, {}, "EnvError: gone"),
        (REPLY, {"a": {"rewards": REWARD}}, "it was not scored"),
        (REPLY, {"a": {"rewards": REWARD}, "b": {"rewards": {"right": None}}}, "it was not scored"),
        (REPLY, {"a": NONE, "b": NONE}, "finite number"),
    ],
)
def test_an_episode_that_was_not_scored_earned_nothing(reply: dict[str, Any], traces: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ended(reply, traces)
