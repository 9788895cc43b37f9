"""What looks at engines come to: the scheduler's capacity, and what a person is told."""

from __future__ import annotations

import asyncio

import pytest

from miles_lite.engine.reported_load import Load, read
from miles_lite.rollout import capacity as room
from miles_lite.rollout.capacity import Capacity, Loads
from miles_lite.scheduler.concurrency import Concurrency

FREE = Load(kv_use=0.3, running=8, queued=0, preempted=0)
FULL = Load(kv_use=0.95, running=8, queued=4, preempted=2)
LONG_QUEUE = Load(kv_use=0.5, running=8, queued=24, preempted=0)


class Watched:
    """A capacity, what it made of looks, and what it said."""

    def __init__(self, *looks: Load | Exception | None, found: bool, running: int | None = None) -> None:
        """`running` rollouts; None: as many as there may be."""
        self.looks, self.sizes, self.said = list(looks), [], []  # type: ignore[var-annotated]
        self.noted: list[Loads] = []
        self.capacity = Capacity(
            loads=self.loads,
            record=self.noted.append,
            running=lambda: running if running is not None else self.sizes[-1] if self.sizes else 8,
            resize=self.sizes.append,
            notify=self.said.append,
            found=Concurrency(engines=1, most=64) if found else None,
        )

    async def loads(self) -> Loads:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return {0: look, 1: None}

    def update(self) -> Watched:
        while self.looks:
            look = self.looks.pop(0)
            assert not isinstance(look, Exception)
            self.capacity.update(look)
        return self


def test_room_is_taken_and_given_back() -> None:
    grown = Watched(*[FREE] * 3, found=True).update().sizes
    assert grown == sorted(set(grown))
    assert grown[0] > 8
    shrunk = Watched(*[FREE] * 3, FULL, found=True).update().sizes
    assert shrunk[-1] < shrunk[-2]


def test_what_idle_engines_tell_changes_nothing() -> None:
    assert Watched(FULL, FULL, found=True, running=0).update().sizes == []


def test_a_given_number_stays_and_a_queue_beyond_what_fits_is_said_once() -> None:
    watched = Watched(FULL, *[LONG_QUEUE] * 2, FREE, *[LONG_QUEUE] * 7, found=False, running=32)
    assert watched.update().sizes == []
    assert watched.said == [
        "engines run 8 requests at once and 24 wait in their queues, of 32 rollouts: "
        "--rollout-concurrency 8 would fit, auto finds it"
    ]


def test_who_does_not_tell_changes_nothing_and_that_is_said_once() -> None:
    watched = Watched(*[None] * 9, found=True).update()
    assert watched.sizes == []
    assert watched.said == ["no engine tells its load: 8 rollouts at once until one does"]
    assert Watched(*[None] * 9, found=False).update().said == []


async def test_a_look_that_takes_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.0)
    watched = Watched(TimeoutError(), TimeoutError(), TimeoutError(), FREE, found=True)

    keeping = asyncio.create_task(watched.capacity.poll())
    while len(watched.noted) < 4:
        await asyncio.sleep(0)
    keeping.cancel()
    assert len(watched.sizes) == 1
    assert len(watched.said) == 1
    assert watched.noted == [{}, {}, {}, {0: FREE, 1: None}]


def test_sglangs_answer_is_read_and_any_other_is_none() -> None:
    rank = {"token_usage": 0.5, "num_running_reqs": 3, "num_waiting_reqs": 1, "queues": {"retracted": 2}}
    rank["gen_throughput"] = 70.5
    other = {"token_usage": 0.7, "num_running_reqs": 1, "num_waiting_reqs": 0}
    both = Load(kv_use=0.75, running=4, queued=1, preempted=2, tokens_per_second=70.5)
    assert read({"loads": [rank, other | {"token_usage": 1.0}]}) == both
    others: list[dict[str, object]] = [{}, {"loads": []}, {"loads": [{"num_reqs": 1}]}, {"loads": "no"}]
    assert [read(answer) for answer in others] == [None] * 4
