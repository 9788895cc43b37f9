"""A wait says once what it waits for, at half of its bound."""

from __future__ import annotations

import asyncio
import time

import pytest

from miles_lite.errors import UnavailableError
from miles_lite.process.patience import Patience, patiently


def test_it_speaks_at_half_of_its_bound_and_ends_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def at(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: seconds)

    at(100.0)
    patience = Patience("rank 1", 60.0, said.append)
    for seconds in (101.0, 130.0, 131.0, 150.0, 160.0):
        at(seconds)
        assert not patience.over(lambda: "it trains")
    at(161.0)
    assert patience.over()
    assert said == ["waiting for rank 1 since 31 s, at most 60 s; it trains"]
    patience.renew()
    assert not patience.over()
    at(200.0)
    assert not patience.over()
    assert said[1:] == ["waiting for rank 1 since 39 s, at most 60 s"]


async def test_what_comes_in_time_is_given_without_a_word() -> None:
    said: list[str] = []
    patience = Patience("it", 60.0, said.append)
    assert await patiently(asyncio.sleep(0.01, "it"), patience, lambda: "never asked") == "it"
    with pytest.raises(ZeroDivisionError):
        await patiently(asyncio.to_thread(lambda: 1 // 0), patience)
    assert said == []


async def test_what_does_not_come_is_cancelled_once_it_was_looked_at() -> None:
    said: list[str] = []
    coming: asyncio.Future[str] = asyncio.Future()
    seen: list[bool] = []
    asked = iter(["it sleeps", "it still sleeps"])
    with pytest.raises(UnavailableError, match=r"^waited 0 s for it; it still sleeps; see its log$"):
        await patiently(
            coming,
            Patience("it", 0.4, said.append),
            lambda: next(asked),
            hint="see its log",
            at_end=lambda: seen.append(coming.done()),
        )
    assert said == ["waiting for it since 0 s, at most 0 s; it sleeps"]
    assert seen == [False]
    assert coming.cancelled()
