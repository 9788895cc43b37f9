"""Two rollouts of a group side by side: where their tokens part, and what of each turn is its own."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.report.parting import MOST_COMPARED, Part, parting
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory

IDS = st.lists(st.integers(0, 5), max_size=6)
TURNS = st.lists(st.tuples(IDS, IDS.filter(bool)), min_size=1, max_size=4)


def said(turns: list[tuple[list[int], list[int]]], drop: int = 0) -> Trajectory:
    """Each turn is told the first ids and samples the others; `drop` of those before are not in its context."""
    told = [
        {
            "turn": at,
            "parent": at - 1 if at else None,
            "messages": [{"role": "system", "content": "be"}, {"role": "user", "content": f"{asked}"}],
            "reply": {"content": f"{answered}"},
            "drop": drop if at else 0,
            "prompt_ids": asked,
            "output_ids": answered,
            "output_logprobs": [-0.1] * len(answered),
            "temperature": 1.0,
            "finish_reason": "stop",
            "weight_versions": [[0, 0, len(answered)]],
        }
        for at, (asked, answered) in enumerate(turns)
    ]
    return atraj.build({"model": {}, "leaves": [len(turns) - 1], "turns": told})


def own(part: Part) -> list[int]:
    return [token for start, end in part.only for token in part.ids[start:end]]


@settings(max_examples=80, deadline=None)
@given(TURNS, TURNS, st.integers(0, 1))
def test_they_part_where_their_sequences_do(
    one: list[tuple[list[int], list[int]]], other: list[tuple[list[int], list[int]]], drop: int
) -> None:
    trajectories = [said(turns, drop) for turns in (one, other)]
    (mine, _, _), (theirs, _, _) = (next(iter(each.sequences())) for each in trajectories)
    found = parting(*trajectories)
    assert found.same == sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))
    for ids, parts in ((mine, found.one), (theirs, found.other)):
        assert bool(parts) == (len(ids) > found.same)
        assert [token for part in parts for token in part.ids] == ids[parts[0].start if parts else len(ids) :].tolist()
        assert not parts or parts[0].start <= found.same
    for left, right in zip(found.one, found.other, strict=False):
        kept = [[token for at, token in enumerate(part.ids) if not _own(part, at)] for part in (left, right)]
        assert kept[0] == kept[1], "what neither has alone is what both have"


def _own(part: Part, at: int) -> bool:
    return any(start <= at < end for start, end in part.only)


def test_one_that_goes_on_alone_has_all_of_that_to_itself() -> None:
    short, long = said([([1, 2], [3])]), said([([1, 2], [3]), ([4], [5, 6])])
    found = parting(short, long)
    assert (found.same, found.one) == (3, [])
    assert [(part.role, part.turn, part.start, own(part)) for part in found.other] == [
        ("system and user", 1, 3, [4]),
        ("assistant", 1, 4, [5, 6]),
    ]


def test_long_turns_cost_no_more_than_some_tokens() -> None:
    size = MOST_COMPARED + 5
    found = parting(said([([1], [2] * size)]), said([([1], [3] + [2] * size)]))
    assert found.same == 1
    assert found.one[0].only[-1] == (MOST_COMPARED, size)
