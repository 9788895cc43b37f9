"""A real agent server of NeMo-Gym on loopback, in its own Python, and its resources server mcqa with its own rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments.nemo_gym import ended
from miles_lite.errors import UserError
from miles_lite.rollout.prompts import open_source
from tests.environments.played import broken, given, play
from tests.environments.servers import NEMO_GYM, serving

needs_nemo_gym = pytest.mark.skipif(not NEMO_GYM.exists(), reason="make setup-environments")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("nemo-gym", tmp_path_factory.mktemp("nemo-gym") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    (file,) = NEMO_GYM.parents[1].glob("lib/*/site-packages/resources_servers/mcqa/data/example.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@needs_nemo_gym
def test_a_task_is_played_on_the_session_and_judged_by_its_resources_server(
    server: str, rows: list[dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = given(f"nemo-gym:{server}", {"tasks": str(tmp_path / "rows.jsonl"), "at_once": 2})
    assert len(open_source(config.data)) == len(rows)
    asked: list[str] = []

    def right(turn: int, text: str) -> str:
        asked.append(text)
        return f"\\boxed{{{rows[len(asked) - 1]['expected_answer']}}}"

    played = play(tiny_model, config, right, tasks=3)
    assert [(each.reward, each.failure) for each in played] == [(1.0, None)] * 3
    assert all("Which of the following" in text or "\nA: " in text for text in asked)
    assert played[0].metadata["response"] == f"\\boxed{{{rows[0]['expected_answer']}}}"
    assert played[0].metadata["environment"]["label"] == "nemo_gym"
    assert all(len(each.samples) == 1 and each.samples[0].trained_tokens for each in played)
    (wrong,) = play(tiny_model, config, lambda turn, text: "\\boxed{J}")
    assert (wrong.reward, wrong.failure) == (0.0, None)


@needs_nemo_gym
def test_what_it_did_not_measure_refuses_or_loses_is_the_environments_failure(
    rows: list[dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    lines = [{**rows[0], "lost": True}, {"responses_create_params": 7}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving("nemo-gym", tmp_path / "log") as url:
        config = given(f"nemo-gym:{url}", {"tasks": str(tmp_path / "rows.jsonl")})
        played = play(tiny_model, config, lambda turn, text: "x", tasks=2)
    played += play(tiny_model, config, lambda turn, text: "x")
    for rollout, why in zip(played, ("the judge was lost", "/run answered 422", "Connect"), strict=True):
        assert why in broken(rollout)


@needs_nemo_gym
@pytest.mark.parametrize(
    ("spec", "args", "why"),
    [
        ("nemo-gym:{url}", {}, "give its agent server's URL"),
        ("nemo-gym:here", {"tasks": "x"}, "give its agent server's URL"),
        ("nemo-gym:{url}/v1", {"tasks": "x"}, "no server of NeMo-Gym answers there"),
        ("nemo-gym:{url}", {"task": "x"}, "no 'task'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(spec: str, args: dict[str, Any], why: str, server: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        open_source(given(spec.format(url=server), args).data)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ({"/verify": {}}, "it has no /run"),
        ({"/run": {"post": {"requestBody": {}}}}, "its /run takes no policy_base_url"),
        ({"/run": {"post": [1]}}, "its /run takes no policy_base_url"),
        ([1], "it has no /run"),
    ],
)
def test_a_server_that_would_not_ask_us_is_refused(paths: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As simple_agent, which plays with the model of its own config."""
    import httpx

    described = httpx.Response(200, json={"paths": paths}, request=httpx.Request("GET", "http://h"))
    monkeypatch.setattr(httpx, "get", lambda url, timeout: described)
    with pytest.raises(UserError, match=re.escape(why)):
        open_source(given("nemo-gym:http://h", {"tasks": "x"}).data)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "without a reward"),
        ({"reward": 0.0, "response": {"output": []}}, "no output"),
        ({"reward": 0.0, "response": {"output": []}, "metadata": {"error": "no image"}}, "no image"),
        ({"reward": 0.0, "response": {"output": [{}]}, "mask_sample": True, "failure_kind": "judge"}, "judge"),
        ({"reward": None, "response": {"output": [{}]}}, "said no reward"),
        ({"reward": float("nan"), "response": {"output": [{}]}}, "finite number"),
    ],
)
def test_a_reward_that_is_no_measurement_is_none(said: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ended(said)
