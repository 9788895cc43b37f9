from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.choices import PolicyName, WorkerType
from miles_lite.router.backend import Worker
from miles_lite.router.policies import NoWorkerError, Placement, power_of_two

MOVES = st.lists(
    st.tuples(st.sampled_from(["place", "end", "fail", "heal"]), st.integers(0, 3), st.sampled_from(list("abcde"))),
    max_size=60,
)


@given(MOVES)
def test_a_key_stays_while_its_worker_can_be_used_and_others_go_to_the_least_loaded(moves):
    workers = [Worker(f"http://h:{port}") for port in range(1, 5)]
    placement = Placement(most=3, max_keys=10)
    last: dict[Any, Worker] = {}
    for move, index, key in moves:
        worker = workers[index]
        if move == "fail":
            worker.failed(patience=1)
        elif move == "heal":
            worker.state, worker.trial = "ready", False
        elif move == "end":
            worker.in_flight = max(0, worker.in_flight - 1)
        elif not any(one.state == "ready" for one in workers):
            with pytest.raises(NoWorkerError, match="no worker is ready"):
                placement.choose(workers, key)
        elif not (free := [one for one in workers if one.room(3)]):
            assert placement.choose(workers, key) is None
        else:
            taken = placement.choose(workers, key)
            assert taken is not None
            (chosen,) = taken
            if last.get(key) in free:
                assert chosen is last[key]
            else:
                assert chosen.in_flight == min(one.in_flight for one in free)
            chosen.in_flight += 1
            last[key] = chosen


@given(st.lists(st.text(min_size=1, max_size=3), max_size=50))
def test_no_more_keys_are_kept_than_allowed_and_the_latest_is(keys):
    workers, placement = [Worker("http://h:1"), Worker("http://h:2")], Placement(max_keys=5)
    for key in keys:
        chosen = placement.choose(workers, key)
        assert len(placement) <= 5
        assert placement.choose(workers, key) == chosen


def test_requests_without_a_key_take_turns():
    workers, placement = [Worker(f"http://h:{port}") for port in range(3)], Placement()
    assert [placement.choose(workers, None) for _ in range(6)] == [(worker,) for worker in workers * 2]
    assert len(placement) == 0


def test_round_robin_ignores_load():
    workers = [Worker(f"http://h:{port}", in_flight=port) for port in range(3)]
    placement = Placement(PolicyName.ROUND_ROBIN)
    assert [placement.choose(workers, None) for _ in range(6)] == [(worker,) for worker in workers * 2]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6))
def test_power_of_two_never_takes_the_worst(loads):
    workers = [Worker(f"http://h:{index}", in_flight=load) for index, load in enumerate(loads)]
    chosen = power_of_two(workers)
    assert sum(one.in_flight >= chosen.in_flight for one in workers) >= 2


def test_a_worker_on_trial_gets_one_request_at_a_time():
    worker, placement = Worker("http://h:1", trial=True), Placement()
    assert placement.choose([worker], None) == (worker,)
    worker.in_flight = 1
    assert placement.choose([worker], None) is None
    worker.answered()
    assert placement.choose([worker], None) == (worker,)


def test_halves_of_a_pair_are_chosen_by_their_own_load_and_a_key_keeps_them():
    prefills = [Worker(f"http://p:{index}", WorkerType.PREFILL, 8998) for index in range(2)]
    decodes = [Worker(f"http://d:{index}", WorkerType.DECODE) for index in range(3)]
    prefills[0].in_flight, decodes[0].in_flight, decodes[1].in_flight = 1, 1, 2
    workers, placement = [*prefills, *decodes], Placement()
    assert placement.choose(workers, "k") == (prefills[1], decodes[2])
    prefills[1].in_flight = decodes[2].in_flight = 9
    assert placement.choose(workers, "k") == (prefills[1], decodes[2])
    decodes[2].failed(patience=1)
    assert placement.choose(workers, "k") == (prefills[1], decodes[0])


def test_a_removed_worker_loses_its_keys():
    workers, placement = [Worker("http://h:1"), Worker("http://h:2")], Placement()
    taken = placement.choose(workers, "k")
    assert taken is not None
    placement.forget(taken[0])
    assert len(placement) == 0


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ([], "no worker is registered"),
        ([Worker("http://h:1", WorkerType.PREFILL, 8998)], "1 prefill and 0 decode workers"),
        ([Worker("http://h:1", state="stale")], "http://h:1 has other weights"),
        ([Worker("http://h:1", state="unreachable")], "http://h:1 cannot be reached"),
    ],
)
def test_nobody_to_ask_has_a_reason(workers, reason):
    with pytest.raises(NoWorkerError, match=reason):
        Placement().choose(workers, None)
