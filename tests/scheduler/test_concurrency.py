"""Concurrency is found: it grows where there is room, gives way where there is none, and stays within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from miles_lite.scheduler.concurrency import SETTLING, Concurrency, EngineLoad

looks = st.builds(
    EngineLoad,
    kv_use=st.floats(0, 1.2),
    queued=st.integers(0, 500),
    preempted=st.integers(0, 50),
    running=st.integers(0, 500),
)


@given(st.integers(1, 16), st.integers(16, 400), st.lists(looks, max_size=60))
def test_it_stays_within_its_bounds_and_never_grows_on_congestion(
    engines: int, most: int, seen: list[EngineLoad]
) -> None:
    concurrency = Concurrency(engines=engines, most=most)
    for look in seen:
        before = concurrency.rollouts
        after = concurrency.update(look)
        assert engines <= after <= most
        if look.kv_use >= 0.8 or look.queued:
            assert after <= before
        if look.running < before and not look.queued and look.kv_use < 0.8 and not look.preempted:
            assert after == before  # the limit is not what holds it


@given(st.integers(1, 16), st.integers(20, 200))
def test_it_finds_what_fits(engines: int, fits: int) -> None:
    """A fleet whose cache `fits` rollouts of each engine fill."""
    concurrency = Concurrency(engines=engines, most=10_000)
    room = fits * engines
    for _ in range(400):
        running = concurrency.rollouts
        preempted = max(0, running - room)
        concurrency.update(EngineLoad(kv_use=running / room, queued=0, preempted=preempted, running=running))
    assert 0.7 * room <= concurrency.rollouts <= room + engines


def test_after_a_decrease_it_waits_for_what_runs_already() -> None:
    concurrency = Concurrency(engines=2, most=100)
    full = EngineLoad(kv_use=0.95, queued=0, preempted=0, running=16)
    first = concurrency.update(full)
    assert first < 16
    assert {concurrency.update(full) for _ in range(SETTLING - 1)} == {first}
    assert concurrency.update(full) < first
