"""Rules of a run: in processes that are replaced, over HTTP with retries, weighed, chosen by rows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from miles_lite.config.choices import RewardRule
from miles_lite.config.options import parse
from miles_lite.errors import RolloutError, UserError, Where
from miles_lite.rollout.metrics import named_reward_metrics
from miles_lite.rollout.rewards import REWARDS, check_packages, llm_judge, load_reward, remote_rm
from miles_lite.rollout.rewards.answer import Answer, Pure, Score, number_in
from miles_lite.rollout.rewards.apart import Apart
from miles_lite.rollout.rewards.pairwise_judge import pairwise_judge
from miles_lite.rollout.rewards.weighted import Weighted
from miles_lite.sample import Group, Rollout

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1 --label-key l".split()


async def judged(
    *flags: str, response: str, metadata: dict[str, Any] | None = None, **more: Any
) -> tuple[Score, Rollout]:
    config, _ = parse([*NEEDED, *flags])
    rules = Weighted(config.rewards, REWARDS)
    rollout = Rollout(index=0, group_index=0)
    try:
        said = await rules(config, rollout, response=response, label="4", metadata=metadata or {}, **more)
    finally:
        rules.close()
    return said, rollout


async def test_several_are_weighed_added_and_kept_by_name() -> None:
    flags = ("--rm-type", "math", "boxed_exact_match=0.5", "f1=-2")
    said, rollout = await judged(*flags, response=r"\boxed{4}")
    assert rollout.metadata["rewards"] == {"math": 1.0, "boxed_exact_match": 1.0, "f1": 0.0}
    assert said == 1.5
    rollout.metadata["reward_category"] = "short"
    metrics = named_reward_metrics([Group(0, {}, [rollout])])
    assert metrics["rollout/rewards/boxed_exact_match"] == metrics["rollout/error_cat/short"] == 1.0


async def test_a_row_names_its_own_rule_and_an_object_has_its_key() -> None:
    flags = ("--rm-type", "exact_match")
    assert (await judged(*flags, response="is 4", metadata={"rm_type": "contains"}))[0] == 1.0
    said, _ = await judged(*flags, response="Answer: 4", metadata={"rm_type": ["dapo=2"]})
    assert said == 2.0
    said, _ = await judged(*flags, "--reward-key", "acc", response="Answer: 5", metadata={"rm_type": "dapo=3"})
    assert said == 0.0
    with pytest.raises(UserError, match="metadata rm_type: invalid choice: 'nope'"):
        await judged(*flags, response="", metadata={"rm_type": "nope"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rm-type mathh", "--rm-type: invalid choice: 'mathh': did you mean math"),
        ("--rm-type math=x", "--rm-type math=x: the weight must be a finite number"),
        ("--rm-type math math=2", "--rm-type: math is there twice"),
        ("--rm-type remote_rm", "--rm-type remote_rm needs --rm-url"),
        ("--rm-type math --rm-url http://x", "asks nobody"),
        ("--rm-type remote_rm --rm-url x", "--rm-url x: must be http://host:port"),
        ("--rm-type remote_rm --rm-url http://", "--rm-url http://: must be http://host:port"),
        ("--rm-type llm_judge --rm-url http://h:x", "--rm-url http://h:x: must be http://host:port"),
        ("--rm-type math --custom-rm-path a.b", "exclude each other"),
    ],
)
def test_mistakes_are_refused_with_the_flag(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([*NEEDED, *flags.split()])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--rm-type math needs math-verify: pip install math-verify"):
        check_packages([RewardRule.MATH])


def hang(answer: Answer) -> float:
    while True:
        pass


def die(answer: Answer) -> float:
    os._exit(3)


def pid(answer: Answer) -> float:
    print("a rule may print")
    return float(os.getpid())


async def test_a_rule_that_hangs_or_dies_has_no_reward_and_the_next_goes_on() -> None:
    apart, answer = Apart(1), Answer(response="")
    try:
        first = await apart.score(Pure(pid), answer, seconds=5)
        assert first == await apart.score(Pure(pid), answer, seconds=5) != os.getpid()
        with pytest.raises(RolloutError, match="hang took over") as slow:
            await apart.score(Pure(hang), answer, seconds=0.2)
        second = await apart.score(Pure(pid), answer, seconds=5)
        assert second != first
        with pytest.raises(RolloutError, match=r"died \(exit code 3\)") as dead:
            await apart.score(Pure(die), answer, seconds=5)
        with pytest.raises(RolloutError, match="ifeval: ValueError: the row's metadata needs") as wrong:
            await apart.score(Pure(REWARDS[RewardRule.IFEVAL].function), answer, seconds=5)  # type: ignore[union-attr]
    finally:
        apart.close()
    assert {each.value.where for each in (slow, dead, wrong)} == {Where.REWARD}


@contextlib.asynccontextmanager
async def served(*replies: web.Response) -> AsyncIterator[tuple[str, list[Any]]]:
    """A server that gives these answers in turn; its URL, and what it was sent."""
    seen: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(await request.json())
        return replies[min(len(seen), len(replies)) - 1]

    app = web.Application()
    app.router.add_post("/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


async def test_a_reward_model_is_asked_again_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_rm, "PAUSE", 0.0)
    busy, good = web.Response(status=503, text="busy"), web.json_response({"score": 0.25})
    async with served(busy, good) as (url, seen):
        said, _ = await judged("--rm-type", "remote_rm", "--rm-url", url, response="four", prompt="2+2")
        assert said == {"score": 0.25}
        assert seen == [{"prompt": "2+2", "response": "four", "label": "4"}] * 2
    async with served(web.Response(status=400, text="bad row")) as (url, seen):
        with pytest.raises(RolloutError, match="400 bad row"):
            await judged("--rm-type", "remote_rm", "--rm-url", url, response="four")
        assert len(seen) == 1
    with pytest.raises(RolloutError, match="Cannot connect") as lost:
        await judged("--rm-type", "remote_rm", "--rm-url", url, "--rm-retries", "1", response="four")
    assert lost.value.where is Where.REWARD


async def test_a_judge_is_asked_and_what_it_says_last_counts() -> None:
    asked = []

    async def ask(messages: list[dict[str, Any]]) -> str:
        asked.append(messages[0]["content"])
        return "<think>Score: 1</think> It is good. Score: 7/10"

    said, _ = await judged("--rm-type", "llm_judge", response="four {label}", prompt="2+2", ask=ask)
    assert said == 0.7
    assert "2+2" in asked[0]
    assert "four {label}" in asked[0]
    chat = web.json_response({"choices": [{"message": {"content": "Score: 10"}}]})
    async with served(chat) as (url, _):
        assert (await judged("--rm-type", "llm_judge", "--rm-url", url, response="four"))[0] == 1.0
    for text in ("no idea", "Score: 11", "Score: -3", "it is -3"):
        with pytest.raises(RolloutError, match="no score from 0 to 10"):
            llm_judge.score_in(text)
    for text in ("**Score:** 8.5", "Score - 8.5", "Rating: 3. No: Score: 8.5 of 10", "8.5/10", "8.5 out of 10"):
        assert llm_judge.score_in(text) == 0.85


@pytest.mark.parametrize("said", [0.5, None, [], {"choices": []}, {"choices": [{"message": None}]}, {"error": "x"}])
async def test_a_judge_that_answers_no_chat_completion_breaks_its_rollout(said: Any) -> None:
    async with served(web.json_response(said)) as (url, _):
        with pytest.raises(RolloutError, match="which is no chat completion") as caught:
            await judged("--rm-type", "llm_judge", "--rm-url", url, response="four")
    assert caught.value.where is Where.REWARD


@pytest.mark.parametrize("score", [[1], "high", "", {}])
def test_a_reward_that_is_no_number_says_what_it_is(score: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the reward is {score!r}: it must be a number")):
        number_in({"score": score}, "score")


async def test_only_so_many_requests_are_made_at_once() -> None:
    running, most = 0, 0

    async def ask(messages: list[dict[str, Any]]) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return "Score: 5"

    config, _ = parse([*NEEDED, "--rm-type", "llm_judge", "--rm-concurrency", "2"])
    rules = Weighted(config.rewards, REWARDS)
    calls = [
        rules(config, Rollout(index=at, group_index=0), response="", label="", metadata={}, ask=ask) for at in range(6)
    ]
    assert await asyncio.gather(*calls) == [0.5] * 6
    assert most == 2
    rules.close()


async def test_a_question_of_ones_own_is_asked_of_pairs_too(tmp_path: Path) -> None:
    (tmp_path / "question").write_text("{prompt}? {first} or {second} {third}")
    asked: list[str] = []

    async def ask(messages: list[dict[str, Any]]) -> str:
        asked.append(messages[0]["content"])
        return "Better: A"

    given = ["--rm-type", "llm_judge", "--group-rm", "--rm-judge-prompt", str(tmp_path / "question")]
    config, _ = parse([*NEEDED, *given])
    assert await pairwise_judge("why", ["{second}", "no"], config.rewards, ask) == [0.5, 0.5]
    assert sorted(asked) == ["why? no or {second} {third}", "why? {second} or no {third}"]


async def test_responses_are_compared_in_pairs_and_in_both_orders() -> None:
    async def ask(messages: list[dict[str, Any]]) -> str:
        first, second = re.findall(r"Response [AB]:\n(\d)", messages[0]["content"])
        return "Better: equal" if first == second else f"So. Better: {'A' if first > second else 'B'}"

    config, _ = parse([*NEEDED, "--rm-type", "llm_judge", "--group-rm"])
    assert load_reward(config) is None
    options = config.rewards
    assert await pairwise_judge("p", ["2", "1", "2"], options, ask) == [0.75, 0.0, 0.75]
    assert await pairwise_judge("p", ["2"], options, ask) == [0.5]

    async def mute(messages: list[dict[str, Any]]) -> str:
        return "hm"

    with pytest.raises(RolloutError, match="pairwise judge: no verdict in 'hm'"):
        await pairwise_judge("p", ["1", "2"], options, mute)
