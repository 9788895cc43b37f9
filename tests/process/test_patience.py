"""A wait says once what it waits for, at half of its bound."""

from __future__ import annotations

import time

import pytest

from miles_lite.process.patience import Patience


def test_it_speaks_at_half_of_its_bound_and_ends_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def at(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: seconds)

    at(100.0)
    patience = Patience("rank 1", 60.0, said.append)
    for seconds in (101.0, 130.0, 131.0, 150.0, 160.0):
        at(seconds)
        assert not patience.over("it trains")
    at(161.0)
    assert patience.over()
    assert said == ["waiting for rank 1 since 31 s, at most 60 s; it trains"]
    patience.renew()
    assert not patience.over()
    at(200.0)
    assert not patience.over()
    assert said[1:] == ["waiting for rank 1 since 39 s, at most 60 s"]
