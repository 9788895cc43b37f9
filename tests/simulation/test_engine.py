"""The engine's queue against the slow, obvious way: one small slice of time after another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from miles_lite.simulation.engine import NEVER, Engine, Turn
from miles_lite.simulation.scenario import EngineModel

MODEL = EngineModel(step=0.01, sequence=0.002, context=1e-7, prefill=1e5, kv_tokens=1e9, slots=64)
SLICE = 1e-3


def run(model: EngineModel, arrivals: list[tuple[float, float, float]]) -> tuple[dict[int, float], Engine]:
    """When the turns end, which arrive at (seconds, with context, for tokens)."""
    ends: dict[int, float] = {}
    engine, coming = Engine(model), sorted(enumerate(arrivals), key=lambda one: one[1][0])
    when = NEVER
    while coming or when < NEVER:
        if coming and coming[0][1][0] <= when:
            number, (at, context, decode) = coming.pop(0)
            engine.advance(at)
            engine.submit(Turn(number, context, 0.0, decode))
        else:
            engine.advance(when)
            ends |= {turn.rollout: when for turn in engine.finish()}
        when = engine.next_event()
    return ends, engine


def slowly(model: EngineModel, arrivals: list[tuple[float, float, float]]) -> dict[int, float]:
    """The same in slices of time, with room for all."""
    now = stall = 0.0
    left: dict[int, float] = {}
    context: dict[int, float] = {}
    ends: dict[int, float] = {}
    while len(ends) < len(arrivals):
        for number, (at, tokens, decode) in enumerate(arrivals):
            if at <= now and number not in context:
                left[number], context[number] = decode, tokens
                stall += tokens / model.prefill
        now += SLICE
        if stall > 0:
            stall -= SLICE
            continue
        running = [number for number in left if number not in ends]
        seconds = model.step + len(running) * model.sequence + sum(context[one] for one in running) * model.context
        for number in running:
            left[number] -= SLICE / seconds
            context[number] += SLICE / seconds
            if left[number] <= 0:
                ends[number] = now
    return ends


TURNS = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0, 3_000), st.floats(1, 300)).map(lambda one: tuple(map(float, one))),
    min_size=1,
    max_size=6,
)


@given(TURNS)
@settings(max_examples=25, deadline=None)
def test_turns_end_when_slices_of_time_say(arrivals: list[tuple[float, float, float]]) -> None:
    ends, engine = run(MODEL, arrivals)
    for number, expected in slowly(MODEL, arrivals).items():
        assert ends[number] == pytest.approx(expected, rel=0.02, abs=0.02 * len(arrivals))
    assert engine.decoded == pytest.approx(sum(decode for _, _, decode in arrivals))


@given(TURNS, st.floats(300, 5_000), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_however_little_fits_every_turn_ends_and_decodes_its_tokens(
    arrivals: list[tuple[float, float, float]], kv_tokens: float, slots: int
) -> None:
    ends, engine = run(replace(MODEL, kv_tokens=kv_tokens, slots=slots), arrivals)
    assert sorted(ends) == list(range(len(arrivals)))
    assert engine.decoded == pytest.approx(sum(decode for _, _, decode in arrivals))
    assert engine.running == 0
    assert engine.kv == 0.0
    unbounded, _ = run(MODEL, arrivals)
    assert max(ends.values()) >= 0.99 * max(unbounded.values())  # contexts that grow slow it at events only


def test_a_turn_whose_context_is_cached_is_not_prefilled_again() -> None:
    engine = Engine(replace(MODEL, context=0.0))
    engine.submit(Turn(0, 1_000.0, 0.0, 100.0))
    first = engine.next_event()
    engine.advance(first)
    [turn] = engine.finish()
    engine.submit(Turn(0, 1_200.0, 1_100.0, 100.0))
    assert turn.decode == 100.0
    assert first == pytest.approx(1_000 / MODEL.prefill + 100 * 0.012)
    assert engine.next_event() - first == pytest.approx(100 / MODEL.prefill + 100 * 0.012)


@pytest.mark.parametrize(("keep_cache", "again"), [(True, 0.0), (False, 1_000 / 1e5)])
def test_a_weight_update_stops_decoding_and_prefills_again_unless_the_cache_stays(
    keep_cache: bool, again: float
) -> None:
    engine = Engine(replace(MODEL, context=0.0))
    engine.submit(Turn(0, 1_000.0, 1_000.0, 100.0))
    engine.pause(3.0, keep_cache=keep_cache)
    assert engine.next_event() == pytest.approx(3.0 + again + 100 * 0.012)


def test_a_cancelled_turn_leaves_its_room() -> None:
    engine = Engine(replace(MODEL, slots=1))
    first, second = Turn(0, 10.0, 0.0, 100.0), Turn(1, 10.0, 0.0, 100.0)
    engine.submit(first)
    engine.submit(second)
    assert (engine.running, len(engine.waiting)) == (1, 1)
    engine.next_event()
    engine.advance(0.5)
    engine.cancel(first)
    assert (engine.running, len(engine.waiting)) == (1, 0)
    engine.cancel(second)
    assert (engine.running, engine.kv, engine.next_event()) == (0, 0.0, NEVER)
