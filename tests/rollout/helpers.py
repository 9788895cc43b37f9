"""What tests of rollouts share: samples, and rollouts whose samples lie in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from miles_lite.rollout.agent_calls import Answer, Part, Ran, Running, Runs, Task
from miles_lite.sample import NOT_SAMPLED, Held, Rollout, Sample


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
    return Rollout(index, group_index, [sample.record() for sample in samples], stored=Held(samples), **known)


class Here:
    """The actor of an agent worker, in this process. `fails` are what calls of it fail with, the next one first."""

    def __init__(self, run: Callable[[Task], Awaitable[Ran]]) -> None:
        self._running = Running(run)
        self.fails: list[Exception] = []
        self.calls = 0

    async def call(self, method: object, tasks: Sequence[Task], dropped: Sequence[int]) -> None:
        assert method is Runs.tell
        self._called()
        await self._running.tell(tasks, dropped)

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
