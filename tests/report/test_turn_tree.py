"""The turns of a trajectory as a tree."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from miles_lite.report.turn_tree import tree
from miles_lite.traces.atraj import Trajectory

PARENTS = st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=21)


def trajectory(parents: list[int | None], leaves: list[int]) -> Trajectory:
    steps: list[dict[str, Any]] = []
    for turn, parent in enumerate(parents):
        steps.append({"role": "user", "content": "go on", "turn": turn, "input_ids": [1]})
        said = {"output_ids": [2, 3], "output_logprobs": [-1.0, -1.0], "finish_reason": "stop"}
        steps.append({"role": "assistant", "content": f"{turn} \x1b", "turn": turn, "parent": parent, **said})
    return Trajectory({"format": "atraj", "version": 1, "leaves": leaves, "steps": steps})


def test_a_fork_is_one_level_below_and_what_was_left_behind_says_so() -> None:
    turns = list(tree(trajectory([None, 0, 1, 1, 3], [4])))
    assert [(turn.turn, turn.parent, turn.forks, turn.counts) for turn in turns] == [
        *((0, None, 0, True), (1, 0, 0, True), (2, 1, 1, False)),
        *((3, 1, 1, True), (4, 3, 1, True)),
    ]
    assert {(turn.tokens, turn.ended) for turn in turns} == {(2, "stop")}
    assert turns[2].text == "2 \u241b"


@given(PARENTS)
def test_every_turn_is_there_once_after_the_one_that_it_goes_on_from(given: list[int | None]) -> None:
    parents = [None if parent is None or parent >= turn else parent for turn, parent in enumerate(given)]
    turns = list(tree(trajectory(parents, [len(parents) - 1])))
    seen = list[int | None]([None])
    for turn in turns:
        assert turn.parent in seen
        seen.append(turn.turn)
    assert sorted(turn.turn for turn in turns) == list(range(len(parents)))


def test_a_conversation_of_any_depth_is_one() -> None:
    parents = [None, *range(5000)]
    assert len(list(tree(trajectory(parents, [5000])))) == 5001
