"""Advantage estimators by the name or path that --advantage-estimator gives them.

Invariant: an estimator is a pure function of the rewarded rollouts of one group, and of nothing else of the batch but
for what its entry in `config.algorithms.ADVANTAGES` says. What it makes of tokens is in `tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

import numpy as np

from miles_lite.config.rewards import Overlong
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.hooks import Advantage, AdvantageFunction, RewardPostProcess, load_hook
from miles_lite.sample import Group, Rollout
from miles_lite.train.advantages.grpo import standardised

Value = TypeVar("Value")
ESTIMATOR = "--advantage-estimator"
POST_PROCESS = "--custom-reward-post-process-path"


@cache
def load_advantage(path: str) -> AdvantageFunction:
    """The function at that import path. Raises UserError."""
    return load_hook(path, flag=ESTIMATOR)


def estimate(
    groups: Sequence[Group], options: Algorithm, overlong: Overlong | None = None
) -> tuple[list[Rollout], list[Advantage]]:
    """The rollouts of the groups that can be trained, in order, and the advantage of each, for which `overlong` takes
    from rewards before all else."""
    if overlong is not None:
        groups = [shortened(group, overlong) for group in groups]
    estimator, path = options.estimator, options.custom_reward_post_process_path
    function = load_advantage(estimator.path)
    trainable = [[rollout for rollout in group.rollouts if rollout.trainable] for group in groups]
    rollouts = [rollout for each in trainable for rollout in each]
    if path is not None:
        said = post_processed(path)(groups, options)
        given = iter(one_each(said, rollouts, what="rewards", where=f"{POST_PROCESS} {path}"))
        trainable = [[replace(rollout, reward=float(next(given))) for rollout in each] for each in trainable]
        options = replace(options, disable_rewards_normalization=True)
    if (least := estimator.least_reward) is not None:
        _refuse_below(least, groups, trainable, options.advantage_estimator)
    where = f"{ESTIMATOR} {estimator.path}"
    values = [
        value for each in trainable for value in one_each(function(each, options), each, what="advantages", where=where)
    ]
    if estimator.standardized:
        values = [float(value) for value in standardised(np.array(values, dtype=np.float64))]
    return rollouts, values


def one_each(said: Iterable[Value], rollouts: Sequence[Rollout], *, what: str, where: str) -> list[Value]:
    """What a function says of these rollouts. Raises UserError, which begins with `where`, for another number of
    values, and for one that is not finite: a single one of them would be in every weight."""
    if not isinstance(said, Iterable):
        raise UserError(f"{where}: returned {said!r:.80}: expected {what}, one for each of {len(rollouts)} rollouts")
    values = list(said)
    if len(values) != len(rollouts):
        raise UserError(f"{where}: {len(values)} {what}, for {len(rollouts)} rollouts")
    for value in values:
        if not all(map(is_finite, value if isinstance(value, tuple) else (value,))):
            raise UserError(
                f"{where}: {value!r:.80} among its {what}: expected a finite number, or for turns a tuple of them"
            )
    return values


def is_finite(value: object) -> bool:
    """Whether it is a number, and one that can be reckoned with; numpy's and torch's are."""
    return hasattr(value, "__float__") and not getattr(value, "ndim", 0) and math.isfinite(float(value))


def shortened(group: Group, overlong: Overlong) -> Group:
    """The group with what `overlong` leaves of its rewards: of the longest of a rollout's turns, since it is one turn
    that --rollout-max-response-len cuts."""
    rollouts = []
    for rollout in group.rollouts:
        taken = overlong.penalty(sample.longest_turn for sample in rollout.samples)
        rollouts.append(rollout if rollout.reward is None else replace(rollout, reward=rollout.reward + taken))
    return replace(group, rollouts=rollouts)


@cache
def post_processed(path: str) -> RewardPostProcess:
    """The function at that import path. Raises UserError."""
    return load_hook(path, flag=POST_PROCESS)


def _refuse_below(
    least: float, groups: Sequence[Group], trainable: Sequence[Sequence[Rollout]], estimator: str
) -> None:
    """Rewards that nobody knew before they were earned: of an agent, a user's function, a row. Raises UserError."""
    for group, rollouts in zip(groups, trainable, strict=True):
        for rollout in rollouts:
            if rollout.reward is not None and rollout.reward < least:
                raise UserError(
                    f"{ESTIMATOR} {estimator}: a reward is {rollout.reward:g}, of the prompt of line "
                    f"{group.prompt.get('row', '?')}, and must not be below {least:g}: give others, or change them "
                    f"with {POST_PROCESS}; or take grpo"
                )
