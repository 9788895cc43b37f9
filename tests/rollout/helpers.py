"""What tests of rollouts share: samples, and rollouts whose samples lie in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from miles_lite.errors import Where
from miles_lite.rollout.agent_calls import Answer, Part, Ran, Running, Runs, Task
from miles_lite.sample import NOT_SAMPLED, Group, LocalSamples, Rollout, Sample, SampleRecord, Status


def make_sample(length: int, trained: int) -> Sample:
    """`length` tokens, of which the last `trained` were sampled."""
    mask = np.zeros(length, dtype=np.uint8)
    mask[length - trained :] = 1
    return Sample(
        tokens=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        temperatures=np.ones(length, dtype=np.float32),
        weight_versions=np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32),
    )


def make_rollout(index: int, group_index: int, *samples: Sample, **known: Any) -> Rollout:
    """The record of a rollout with these samples."""
    return Rollout(index, group_index, [sample.record() for sample in samples], stored=LocalSamples(samples), **known)


def without_ray(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """What `module` has done aside is done in a thread of this process, and what comes of it lies here."""

    async def aside(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    async def parts_aside(function: Callable[..., Any], parts: int, *args: Any) -> tuple[Any, list[Any]]:
        first, *rest = await asyncio.to_thread(function, *args)
        assert len(rest) == parts
        return first, rest

    for name, here in {"aside": aside, "parts_aside": parts_aside, "Stored": LocalSamples}.items():
        monkeypatch.setattr(module, name, here)


class Here:
    """The actor of an agent worker, in this process. `fails` are what calls of it fail with, the next one first."""

    def __init__(self, run: Callable[[Task], Awaitable[Ran]]) -> None:
        self._running = Running(run)
        self.fails: list[Exception] = []
        self.calls = 0

    async def call(self, method: object, tasks: Sequence[Task], dropped: Sequence[int]) -> None:
        assert method is Runs.submit
        self._called()
        await self._running.submit(tasks, dropped)

    def call_parts(
        self, method: object, parts: int, tasks: Sequence[Task], dropped: Sequence[int]
    ) -> tuple[asyncio.Future[Any], list[asyncio.Future[Any]]]:
        assert method is Runs.exchange
        answer = asyncio.ensure_future(self._exchange(tasks, dropped))
        each: list[asyncio.Future[Any]] = [asyncio.ensure_future(_part(answer, at)) for at in range(1 + parts)]
        return each[0], each[1:]

    async def _exchange(self, tasks: Sequence[Task], dropped: Sequence[int]) -> Answer:
        self._called()
        return await self._running.exchange(tasks, dropped)

    def _called(self) -> None:
        self.calls += 1
        if self.fails:
            raise self.fails.pop(0)


async def _part(answer: asyncio.Future[Answer], at: int) -> list[Any] | Part:
    return (await answer)[at]


def a_sample(trained: int, versions: Sequence[int] = (0,), prompt: int = 2, **kw: Any) -> SampleRecord:
    """`prompt` given tokens, then `trained` sampled ones that walk through `versions`."""
    sampled = np.resize(np.array(versions, np.int32), trained)
    return Sample(
        tokens=np.arange(prompt + trained, dtype=np.int32),
        loss_mask=np.array([0] * prompt + [1] * trained, np.uint8),
        logprobs=np.zeros(prompt + trained, np.float32),
        temperatures=np.ones(prompt + trained, np.float32),
        weight_versions=np.concatenate([np.full(prompt, NOT_SAMPLED, np.int32), sampled]),
        **kw,
    ).record()


def a_group(*rewards: Any, index: int = 0) -> Group:
    rollouts = [
        Rollout(index=i, group_index=index, reward=reward, samples=[a_sample(3)], status=Status.COMPLETED)
        for i, reward in enumerate(rewards)
    ]
    return Group(index=index, prompt={}, rollouts=rollouts)


def a_rollout(**kw: Any) -> Rollout:
    return Rollout(**{"index": 0, "group_index": 0, "status": Status.COMPLETED, "reward": 1.0, **kw})


def failed(where: Where) -> Rollout:
    rollout = a_rollout()
    rollout.fail(where, "why")
    return rollout


def of(*rollouts: Rollout) -> list[Group]:
    return [Group(index=0, prompt={}, rollouts=list(rollouts))]
