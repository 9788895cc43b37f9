"""Every example of docs/extend.md is run: what a flag loads as its flag loads it, the rest in its registry's place."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from miles_lite.config.choices import PauseMode
from miles_lite.config.rollouts import Data
from miles_lite.config.training import Algorithm
from miles_lite.hooks import Keep, load_hook
from miles_lite.process.user_code import load_named
from miles_lite.rollout.prompts import load_prompts
from miles_lite.router.backend import Worker
from miles_lite.router.policies import POLICIES, Placement
from miles_lite.sample import Group, Status
from miles_lite.session.http import app
from miles_lite.train.losses.streams import Streams
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Receiver
from tests.rollout.helpers import make_rollout, make_sample
from tests.session.engine import STOP, answer, bench
from tests.train.helpers import make_streams

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```python (\w+)\n(.*?)```", PAGE, re.DOTALL))


def example(name: str, folder: Path, *, function: str = "run", flag: str | None = None) -> Any:
    """What an example defines, as its flag finds it, if it has one."""
    file = folder / f"{name}.py"
    file.write_text(EXAMPLES[name])
    path = f"{file}:{function}"
    return load_named(path, given_as=name) if flag is None else load_hook(path, flag=flag)


def group(*rewards: float | None) -> Group:
    rollouts = [
        make_rollout(at, 0, make_sample(4, 2), reward=reward, status=Status.COMPLETED)
        for at, reward in enumerate(rewards)
    ]
    return Group(index=0, prompt={"row": 0}, rollouts=rollouts)


async def test_an_agent(tiny_model: Path, tmp_path: Path) -> None:
    run = example("agent", tmp_path, flag="--custom-agent-function-path")
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await b.client.create()
        told = {"base_url": b.client.base_url(session), "api_key": b.client.api_key(session)}
        said = await run(**told, prompt="go", request_kwargs={"max_tokens": 8}, metadata={}, label=None)
        (sample,) = await b.client.collect(session)
    assert said["turns"] == 3
    assert sample.trained_tokens == 6


async def test_a_reward(tmp_path: Path) -> None:
    run = example("reward", tmp_path, flag="--custom-rm-path")
    rollout = make_rollout(0, 0)
    judged = [
        await run(None, rollout, response=text, label=42, metadata={}) for text in ("?", "ANSWER: 42", "ANSWER 1")
    ]
    assert judged == [0.0, 1.0, 0.1]


def test_a_filter(tmp_path: Path) -> None:
    run = example("filter", tmp_path, flag="--dynamic-sampling-filter-path")
    assert run(group(0.0, None)) == Keep(False, "too_few")
    assert run(group(0.0, 0.01)) == Keep(False, "too_close")
    assert run(group(0.0, 1.0)).keep


def test_a_picker(tmp_path: Path) -> None:
    run = example("picker", tmp_path, flag="--session-sample-picker-path")
    mine, other = make_sample(4, 2), make_sample(4, 2)
    other.metadata["agent"] = "critic"
    assert run([mine, other], {}) == [mine]


async def test_an_environment(tmp_path: Path) -> None:
    example("environment", tmp_path, function="write")(tmp_path / "prompts.jsonl", count=3, seed=0)
    prompts = load_prompts(f"{tmp_path}/prompts.jsonl", Data(prompt_data="-"))
    reward = example("environment", tmp_path, function="reward", flag="--custom-rm-path")
    (prompt, *_) = prompts
    given = {"label": prompt.label, "metadata": prompt.metadata}
    assert len(prompts) == 3
    assert await reward(None, make_rollout(0, 0), response=f"it is {prompt.metadata['sum']} .", **given) == 1.0
    assert await reward(None, make_rollout(0, 0), response="it is -1", **given) == 0.0


def test_an_advantage(tmp_path: Path) -> None:
    run = example("advantage", tmp_path, flag="--advantage-estimator")
    assert run(group(1.0, 0.0, 0.5).rollouts, Algorithm()) == [0.75, -0.75, 0.0]


def test_a_loss(tmp_path: Path) -> None:
    run = example("loss", tmp_path, flag="--loss-type")
    none, metrics = run(Streams.empty(reference=False), Algorithm())
    assert none.shape == metrics["clipped"].shape == (0,)
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    streams = make_streams(new, old=torch.tensor([-1.0, -3.0]))
    loss, metrics = run(streams, Algorithm(eps_clip=0.2))
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([-1.0, -1.2]))
    assert metrics["clipped"].tolist() == [0.0, 1.0]


def test_a_metric(tmp_path: Path) -> None:
    run = example("metric", tmp_path)
    assert run([]) == {}
    assert run([group(0.0, 1.0), group(None), group(0.5)]) == {"rollout/best_reward": 0.75}


def test_a_router_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = example("policy", tmp_path)
    name = next(iter(POLICIES))
    monkeypatch.setattr("miles_lite.router.policies.POLICIES", {name: run})
    busy, fresh = Worker("http://a", served=3), Worker("http://b")
    assert Placement(name).choose(random.sample([busy, fresh], 2), None) == (fresh,)


async def test_a_dialect(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = example("dialect", tmp_path, function="Local")
    monkeypatch.setattr(app, "DIALECTS", {"local": local})
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b, aiohttp.ClientSession() as http:
        session = await b.client.create()
        address, key = b.client.base_url(session).removesuffix("/v1"), b.client.api_key(session)
        body = {"messages": [{"role": "user", "content": "go"}]}
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post(f"{address}/api/chat", json=body, headers=headers) as reply:
            said = json.loads(await reply.text())
        (sample,) = await b.client.collect(session)
    assert said["done"] is True
    assert said["message"]["role"] == "assistant"
    assert sample.trained_tokens == 2


async def test_a_weight_transport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = example("transport", tmp_path, function="Staged")()
    brought: list[list[int]] = []

    async def deliver(self: Any, update: Any, trainer: Any, receivers: list[Receiver[Any]]) -> dict[int, str]:
        brought.append([one.index for one in receivers])
        return {one.index: "no" for one in receivers if one.index == 1}

    monkeypatch.setattr("miles_lite.weights.transports.disk.Disk.deliver", deliver)
    receivers: list[Any] = [Receiver(at, None, None) for at in range(3)]  # type: ignore[arg-type]
    assert await staged.deliver(WeightUpdate("f", 1, PauseMode.RETRACT), None, receivers) == {1: "no"}
    assert brought == [[0], [1], [2]]


def test_every_example_is_tried() -> None:
    tried = {name for name in EXAMPLES if f'example("{name}"' in Path(__file__).read_text(encoding="utf-8")}
    assert tried == set(EXAMPLES)
    assert all(len(code.splitlines()) <= 20 for code in EXAMPLES.values())
