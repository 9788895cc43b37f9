"""Rewards: what the agent function returned, a user's function, or one of a few built-in rules."""

from __future__ import annotations

import random
from collections.abc import Mapping

from miles_lite.config.choices import RewardRule
from miles_lite.config.options import Config
from miles_lite.hooks import RewardFunction, load_hook
from miles_lite.sample import Rollout


async def exact_match(config: Config, rollout: Rollout, *, response: str, label: object, **_: object) -> float:
    """1 when the response, stripped, equals the label."""
    return float(response.strip() == str(label).strip())


async def contains(config: Config, rollout: Rollout, *, response: str, label: object, **_: object) -> float:
    """1 when the label occurs in the response."""
    return float(str(label) in response)


async def random_reward(config: Config, rollout: Rollout, **_: object) -> float:
    """A coin, seeded by the run and the rollout: for dry runs of a pipeline."""
    return float(random.Random(f"{config.data.rollout_seed}-{rollout.index}").random() < 0.5)


REWARDS: Mapping[RewardRule, RewardFunction] = {
    RewardRule.EXACT_MATCH: exact_match,
    RewardRule.CONTAINS: contains,
    RewardRule.RANDOM: random_reward,
}
"""By the name that --rm-type gives them."""


def load_reward(config: Config) -> RewardFunction | None:
    """The run's; None without --custom-rm-path and --rm-type: then the agent function returns the reward."""
    options = config.rollouts
    if options.custom_rm_path:
        return load_hook(options.custom_rm_path, flag="--custom-rm-path")
    return None if options.rm_type is None else REWARDS[options.rm_type]
