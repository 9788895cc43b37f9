"""Dynamic sampling filters: which prompt groups are worth training on (DAPO, arXiv:2503.14476, section 3.2)."""

from __future__ import annotations

from miles_lite.hooks import GroupFilter, Keep
from miles_lite.sample import Group, Status


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


def verdict(group: Group, filter_function: GroupFilter | None) -> Keep:
    """Apply a filter that may answer with a Keep or a bool."""
    if filter_function is None:
        return Keep(True)
    answer = filter_function(group)
    return (
        answer
        if isinstance(answer, Keep)
        else Keep(bool(answer), None if answer else getattr(filter_function, "__name__", "filter"))
    )
