"""The engine's queue against the slow, obvious way: one small slice of time after another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from miles_lite.scheduler.protocol import AttemptId
from miles_lite.simulation.engine import FULL, NEVER, Engine, Turn
from miles_lite.simulation.host import Host, Session
from miles_lite.simulation.scenario import EngineModel
from miles_lite.simulation.workload import Work

MODEL = EngineModel(step=0.01, sequence=0.002, context=1e-7, prefill=1e5, kv_tokens=1e9, slots=64)
SLICE = 1e-3


def run(model: EngineModel, arrivals: list[tuple[float, float, float]]) -> tuple[dict[int, float], Engine]:
    """When the turns end, which arrive at (seconds, with context, for tokens)."""
    ends: dict[int, float] = {}
    engine, coming = Engine(model), sorted(enumerate(arrivals), key=lambda one: one[1][0])
    numbers: dict[int, int] = {}
    while coming or engine.due < NEVER:
        if coming and coming[0][1][0] <= engine.due:
            number, (at, context, decode) = coming.pop(0)
            turn = Turn(context, 0.0, decode)
            numbers[id(turn)] = number
            engine.advance(at)
            engine.submit(turn)
        else:
            engine.advance(engine.due)
            ends |= {numbers[id(turn)]: engine.now for turn in engine.finish()}
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
    engine.submit(Turn(1_000.0, 0.0, 100.0))
    first = engine.due
    engine.advance(first)
    [turn] = engine.finish()
    engine.submit(Turn(1_200.0, 1_100.0, 100.0))
    assert turn.decode == 100.0
    assert first == pytest.approx(1_000 / MODEL.prefill + 100 * 0.012)
    assert engine.due - first == pytest.approx(100 / MODEL.prefill + 100 * 0.012)


@pytest.mark.parametrize(("keep_cache", "again"), [(True, 0.0), (False, 1_000 / 1e5)])
def test_a_weight_update_stops_decoding_and_prefills_again_unless_the_cache_stays(
    keep_cache: bool, again: float
) -> None:
    engine = Engine(replace(MODEL, context=0.0))
    engine.submit(Turn(1_000.0, 1_000.0, 100.0))
    engine.pause(3.0, keep_cache=keep_cache)
    assert engine.due == pytest.approx(3.0 + again + 100 * 0.012)


@given(st.integers(1, 64), st.floats(100.0, 5_000.0))
@settings(max_examples=50, deadline=None)
def test_full_speed_is_what_an_engine_decodes_whose_slots_or_cache_are_full(slots: int, context: float) -> None:
    model = replace(MODEL, kv_tokens=50_000.0, slots=slots)
    engine = Engine(model)
    for _ in range(min(slots, int(FULL * model.kv_tokens / context))):
        engine.submit(Turn(context, context, 10.0))
    engine.advance(engine.due)
    assert engine.busy == pytest.approx(engine.now, rel=0.05 if engine.running > 4 else 0.5)
    assert engine.busy <= engine.now


def test_a_rollout_takes_its_turns_with_a_tool_after_each_but_the_last_and_ends_once() -> None:
    tokens, tools = [100.0, 50.0, 20.0], [2.0, 3.0, 5.0]
    for fails_after, turns in ((None, 3), (0, 1), (1, 2), (2, 3)):
        host = Host(replace(MODEL, context=0.0), observation=30.0)
        work = Work(tokens, tools, sum(tokens), fails_after)
        host.start(Session(40.0, 0.0, tokens[0], who=AttemptId(0, 0, 0), work=work, host=0, version=0), 1.0)
        assert host.run(1.0) == []
        [(ended, session)] = host.run(1e9)
        assert session.broke is (fails_after is not None)
        waited = sum(tools[: 2 if fails_after is None else turns])
        prefilled = 40.0 + 30.0 * (turns - 1)
        seconds = sum(tokens[:turns]) * 0.012 + prefilled / MODEL.prefill + waited
        assert ended == pytest.approx(1.0 + seconds, rel=1e-4)
        assert session.context == 40.0 + 30.0 * (turns - 1) + sum(tokens[:turns])
        assert host.due == NEVER
        assert host.run(2e9) == []


STARTS = st.lists(
    st.tuples(st.floats(0, 5), st.lists(st.floats(1, 200), min_size=1, max_size=3), st.booleans()),
    min_size=1,
    max_size=8,
)


@given(STARTS, st.lists(st.floats(0, 20), max_size=8))
@settings(max_examples=50, deadline=None)
def test_how_often_a_host_is_run_changes_nothing(
    starts: list[tuple[float, list[float], bool]], looks: list[float]
) -> None:
    def ends(at: list[float]) -> list[float]:
        host, found = Host(replace(MODEL, context=0.0, kv_tokens=2_000.0), observation=10.0), []
        coming = [(when, number) for number, (when, _, _) in enumerate(starts)]
        for when, number in sorted([*coming, *((when, -1) for when in at), (1e9, -1)]):
            found += host.run(when)
            if number >= 0:
                _, decode, fails = starts[number]
                work = Work(decode, [1.0] * len(decode), sum(decode), 0 if fails else None)
                session = Session(20.0, 0.0, decode[0], who=AttemptId(number, 0, 0), work=work, host=0, version=0)
                host.start(session, when)
        assert sorted(session.who.group for _, session in found) == list(range(len(starts)))
        return [when for _, when in sorted((session.who, when) for when, session in found)]

    assert ends(looks) == pytest.approx(ends([]))
