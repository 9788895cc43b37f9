"""Tasks of the real reasoning-gym: the same everywhere, scored by the package, harder as a curriculum goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.rollout.prompts import load_prompts, open_source
from tests.environments.played import given, play

pytest.importorskip("reasoning_gym", reason="make setup-environments")
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "answer": "text"}


def answered(text: str) -> str:
    terms = text.rpartition("problem: ")[2].partition(" =")[0]
    return str(eval(terms))


def test_the_package_scores_what_the_model_says(tiny_model: Path) -> None:
    config = given("reasoning-gym:chain_sum", SUMS)
    right = play(tiny_model, config, lambda turn, text: answered(text), tasks=3)
    assert [rollout.reward for rollout in right] == [1.0, 1.0, 1.0]
    (wrong,) = play(tiny_model, config, lambda turn, text: "no idea")
    assert wrong.reward is not None
    assert wrong.reward < 0.5
    tagged = given("reasoning-gym:chain_sum", {**SUMS, "answer": "tag"})
    (good,) = play(tiny_model, tagged, lambda turn, text: f"so <answer>{answered(text)}</answer>")
    (bare,) = play(tiny_model, tagged, lambda turn, text: answered(text))
    assert (good.reward, bare.reward) == (1.0, 0.0)


def test_tasks_are_dealt_in_turn_and_another_split_and_seed_are_others() -> None:
    spec = "reasoning-gym:chain_sum,letter_counting"
    prompts = open_source(given(spec).data).prompts
    assert len(prompts) == 1_000_000
    first = [prompts[at].input for at in range(8)]
    assert first == [open_source(given(spec).data).prompts[at].input for at in range(8)]
    assert all("arithmetic" in str(each) for each in first[::2])
    assert not any("arithmetic" in str(each) for each in first[1::2])
    test = load_prompts("environment:test", given(spec).data)
    seeded = open_source(given(spec, None, "--rollout-seed", "1").data).prompts
    assert all([each[at].input for at in range(8)] != first for each in (test, seeded))
    assert prompts[999_999].metadata == {"environment": {"split": "train", "place": 999_999}}


def test_a_curriculum_goes_up_with_the_prompts_that_are_dealt() -> None:
    prompts = open_source(given("reasoning-gym:chain_sum", {"curriculum": 10}).data).prompts
    lengths = [max(len(str(prompts[at].input)) for at in range(begin, begin + 10)) for begin in (0, 30, 60)]
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("reasoning-gym", {}, r"name one of its \d+ tasks, as reasoning-gym:chain_sum"),
        ("reasoning-gym:chain_sun", {}, "reasoning-gym:chain_sun: no such task: did you mean chain_sum\\?"),
        ("reasoning-gym:chain_sum", {"seed": 3}, "the tasks' seed is --rollout-seed"),
        ("reasoning-gym:chain_sum", {"terms": 3}, "unexpected keyword argument 'terms'"),
        ("reasoning-gym:chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
        ("reasoning-gym:chain_sum", {"answer": "box"}, "answer: 'box' is none of tag, text"),
        ("reasoning-gym:chain_sum", {"size": "many"}, "size: expected int, found 'many'"),
        ("reasoning-gym:chain_sum", {"size": 0}, "size: 0 must be at least 1"),
    ],
)
def test_a_task_or_a_knob_that_is_none_is_said(spec: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(given(spec, args).data)
