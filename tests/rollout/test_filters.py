"""Filters by name and by path, and one that asks for tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from miles_lite.errors import UserError
from miles_lite.hooks import Keep
from miles_lite.rollout.filters import FILTERS, load_filter, verdict
from miles_lite.sample import Group
from tests.rollout.helpers import make_rollout, make_sample


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_named_with_or_without_its_path(name: str) -> None:
    assert load_filter(name) is load_filter(f"miles_lite.rollout.filters.{name}") is FILTERS[name]


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UserError, match="known are check_reward_nonzero_std, check_no_aborted"):
        load_filter("check_nothing")


@pytest.mark.parametrize(("longest", "kept"), [(4, True), (3, False)])
async def test_a_filter_may_ask_for_tokens(longest: int, kept: bool) -> None:
    def short(group: Group) -> bool:
        return all(len(sample.tokens) <= longest for rollout in group.rollouts for sample in rollout.fetch())

    group = Group(index=0, prompt={}, rollouts=[make_rollout(0, 0, make_sample(4, 2))])
    assert await verdict(group, short) == Keep(kept, None if kept else "short")


@pytest.mark.parametrize("answer", [None, 1, "keep", Group])
async def test_what_is_no_verdict_is_refused(answer: Any) -> None:
    def mine(group: Group) -> Any:
        return answer

    with pytest.raises(UserError, match=r"--dynamic-sampling-filter-path: mine returned .*: expected True, False or"):
        await verdict(Group(index=0, prompt={}, rollouts=[]), mine)


async def test_a_bool_of_numpy_is_one() -> None:
    assert await verdict(Group(index=0, prompt={}, rollouts=[]), lambda group: np.bool_(True)) == Keep(True)  # type: ignore[arg-type]
