from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.router.placement import NoWorkerError, Placement
from miles_lite.router.registry import Worker

MOVES = st.lists(
    st.tuples(st.sampled_from(["place", "end", "fail", "heal"]), st.integers(0, 3), st.sampled_from(list("abcde"))),
    max_size=60,
)


@given(MOVES)
def test_a_key_stays_while_its_worker_can_be_used_and_others_go_to_the_least_loaded(moves):
    workers = [Worker(f"http://h:{port}") for port in range(1, 5)]
    placement, last = Placement(max_keys=10), {}
    for move, index, key in moves:
        if move == "fail":
            workers[index].failed(patience=1)
        elif move == "heal":
            workers[index].answered()
        elif move == "end":
            workers[index].in_flight = max(0, workers[index].in_flight - 1)
        elif usable := [worker for worker in workers if not worker.set_aside]:
            chosen = placement.choose(workers, key)
            assert chosen in usable
            if last.get(key) in usable:
                assert chosen is last[key]
            else:
                assert chosen.in_flight == min(worker.in_flight for worker in usable)
            chosen.in_flight += 1
            last[key] = chosen
        else:
            with pytest.raises(NoWorkerError, match="none of 4 workers can be reached"):
                placement.choose(workers, key)


@given(st.lists(st.text(min_size=1, max_size=3), max_size=50))
def test_no_more_keys_are_kept_than_allowed_and_the_latest_is(keys):
    workers, placement = [Worker("http://h:1"), Worker("http://h:2")], Placement(max_keys=5)
    for key in keys:
        chosen = placement.choose(workers, key)
        assert len(placement) <= 5
        assert placement.choose(workers, key) is chosen


def test_requests_without_a_key_take_turns():
    workers, placement = [Worker(f"http://h:{port}") for port in range(3)], Placement()
    assert [placement.choose(workers, None) for _ in range(6)] == workers * 2
    assert len(placement) == 0


def test_a_removed_worker_loses_its_keys():
    workers, placement = [Worker("http://h:1"), Worker("http://h:2")], Placement()
    first = placement.choose(workers, "k")
    placement.forget(first)
    assert len(placement) == 0


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ([], "no worker is registered"),
        ([Worker("http://h:1", "prefill", 8998), Worker("http://h:2", "decode")], "1 prefill and 1 decode"),
    ],
)
def test_nobody_to_ask_has_a_reason(workers, reason):
    with pytest.raises(NoWorkerError, match=reason):
        Placement().choose(workers, None)
