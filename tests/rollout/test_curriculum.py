"""Prompts that turned out easy or hard come again as often as is asked for; none is lost, and dealing goes on."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.rollouts import Data
from miles_lite.rollout.curriculum import Curriculum, curriculum_of
from miles_lite.rollout.prompts import DataSource, Prompt

SIZE = 20


def dealing(**options: float) -> Curriculum:
    data = Data(prompt_data="", rollout_shuffle=True, **options)  # type: ignore[arg-type]
    return Curriculum(DataSource([Prompt(row=row, input="x") for row in range(SIZE)], data), data)


def test_without_a_threshold_there_is_none() -> None:
    data = Data(prompt_data="")
    source = DataSource([Prompt(row=0, input="x")], data)
    assert curriculum_of(source, data) is None
    assert curriculum_of(source, Data(prompt_data="", hard_threshold=0.0)) is not None


def test_each_comes_once_and_then_as_often_as_its_pool_says() -> None:
    curriculum = dealing(easy_threshold=0.9, easy_fraction=0.0, hard_threshold=0.1, hard_fraction=0.5)
    first = [curriculum.take() for _ in range(SIZE)]
    assert sorted(first) == list(range(SIZE))
    for number in range(SIZE):
        curriculum.judged(number, {0: 1.0, 1: 0.0}.get(number % 4, 0.5))
    dealt = Counter(curriculum.take() for _ in range(1250))
    easy, hard, others = (sum(dealt[n] for n in range(at, SIZE, 4)) for at in range(3))
    assert easy == 0
    assert 0.35 * others < hard < 0.65 * others
    assert curriculum.metrics()["rollout/prompts_easy"] == curriculum.metrics()["rollout/prompts_hard"] == 5
    curriculum.judged(0, 0.5)
    assert 0 in {curriculum.take() for _ in range(2 * SIZE)}, "it is not easy any longer"


def test_where_all_is_easy_dealing_goes_on() -> None:
    curriculum = dealing(easy_threshold=0.5, easy_fraction=0.0)
    for number in range(SIZE):
        curriculum.judged(number, 1.0)
    assert {curriculum.take() for _ in range(SIZE)} <= set(range(SIZE))
    assert curriculum.metrics()["rollout/prompts_left_out"] == SIZE * SIZE


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.floats(0, 1)), max_size=40), st.integers(0, 60))
def test_what_is_restored_goes_on_the_same(judged: list[tuple[int, float]], taken: int) -> None:
    options = {"easy_threshold": 0.8, "easy_fraction": 0.3, "hard_threshold": 0.2, "hard_fraction": 0.3}
    one, other = dealing(**options), dealing(**options)
    for number, reward in judged:
        one.judged(number, reward)
    for _ in range(taken):
        one.take()
    other.restore(json.loads(json.dumps(one.state())))
    assert [one.take() for _ in range(30)] == [other.take() for _ in range(30)]


def test_a_checkpoint_from_before_and_one_without_can_be_gone_on_from() -> None:
    curriculum, data = dealing(easy_threshold=0.8), Data(prompt_data="", rollout_shuffle=True)
    plain = DataSource(curriculum.prompts, data)
    [plain.take() for _ in range(7)]
    curriculum.restore(plain.state())
    assert curriculum.take() == plain.take()
    plain.restore(curriculum.state())
    assert curriculum.take() == plain.take()
