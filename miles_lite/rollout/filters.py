"""Dynamic sampling filters: which prompt groups are worth training on (DAPO, arXiv:2503.14476, section 3.2).

A filter sees records; one that wants tokens fetches them (`Rollout.fetch`), for which it runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from miles_lite.errors import UserError
from miles_lite.hooks import GroupFilter, Keep, load_hook
from miles_lite.sample import Group, Status

FLAG = "--dynamic-sampling-filter-path"


def check_reward_nonzero_std(group: Group) -> Keep:
    """Drop a group whose rewards are all equal: it has no advantage. A None reward counts as a value of its own."""
    rewards = [None if reward is None else float(reward) for reward in group.rewards]
    if len(set(rewards)) > 1:
        return Keep(True)
    label = "none" if not rewards or rewards[0] is None else f"{round(rewards[0], 1) + 0.0}"
    return Keep(False, f"zero_std_{label}")


def check_no_aborted(group: Group) -> Keep:
    """Drop a group that has an aborted rollout."""
    aborted = any(rollout.status is Status.ABORTED for rollout in group.rollouts)
    return Keep(not aborted, "group_has_aborted" if aborted else None)


FILTERS: Mapping[str, GroupFilter] = {
    "check_reward_nonzero_std": check_reward_nonzero_std,
    "check_no_aborted": check_no_aborted,
}
"""Those that --dynamic-sampling-filter-path may name without a path."""


def load_filter(path: str | None) -> GroupFilter | None:
    """The filter of --dynamic-sampling-filter-path, if it is given. Raises UserError."""
    if path is None or path in FILTERS:
        return None if path is None else FILTERS[path]
    if not {".", ":"} & set(path):
        raise UserError(f"{FLAG} {path}: known are {', '.join(FILTERS)}; others by package.module.name or file.py:name")
    return load_hook(path, flag=FLAG)


async def verdict(group: Group, filter_function: GroupFilter | None) -> Keep:
    """Apply a filter that may answer with a Keep or a bool. Raises UserError for any other answer: whatever is true
    would keep all groups, and None none of them."""
    if filter_function is None:
        return Keep(True)
    name = getattr(filter_function, "__name__", "filter")
    answer: object = await asyncio.to_thread(filter_function, group)
    if isinstance(answer, Keep):
        return answer
    if not isinstance(answer, bool | np.bool_):
        raise UserError(f"{FLAG}: {name} returned {answer!r:.80}: expected True, False or a Keep")
    return Keep(bool(answer), None if answer else name)
