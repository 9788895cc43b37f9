"""A second in which agents ran is told once, however many ran and whenever one asks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.observe.overhead import uncovered
from miles_lite.rollout.loads import Loads


@given(st.lists(st.sampled_from(["begin", "end", "ask", "pass"]), max_size=40))
def test_it_is_what_a_clock_saw(happens: list[str]) -> None:
    now, seen, told, open_blocks, loads = 0.0, 0.0, list[tuple[float, float]](), [], Loads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        for each in happens:
            if each == "begin":
                open_blocks.append(loads.on(["worker", "session"]))
                open_blocks[-1].__enter__()
            elif each == "end" and open_blocks:
                open_blocks.pop(0).__exit__(None, None, None)
            elif each == "ask":
                told += loads.busy()
            else:
                now, seen = now + 1.0, seen + bool(open_blocks)
        told += loads.busy()
    assert now - uncovered(0.0, now, told) == seen
    assert sum(end - begin for begin, end in told) == seen


def test_who_has_fewest_is_asked() -> None:
    loads = Loads()
    with loads.on(["a"]), loads.on(["b"]), loads.on(["b"]):
        assert loads.least(["b", "a"]) == "a"
        assert loads.least(["b", "a", "c"]) == "c"
    assert loads.least(["b", "a"]) == "b"
    with loads.on({"b": 7}):
        assert loads.least(["b", "a"]) == "a"
    assert loads.least(["b", "a"]) == "b"
