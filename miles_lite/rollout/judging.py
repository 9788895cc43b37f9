"""A rollout's reward: who says it, and what of it is kept.

Invariant: what comes out is a finite number or None; an object's other values are in the rollout's metadata under
`reward_details`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miles_lite.config.options import Config
from miles_lite.hooks import GroupRewardFunction, RewardFunction, RewardMore, load_hook, named
from miles_lite.rollout.prompts import Prompt
from miles_lite.rollout.rewards import REWARDS
from miles_lite.rollout.rewards.answer import Ask, number_in
from miles_lite.rollout.rewards.pairwise_judge import pairwise_judge
from miles_lite.rollout.rewards.weighted import ROW_KEY, Weighted
from miles_lite.sample import Rollout

CATEGORY = "reward_category"
"""Of a rollout's metadata: what --log-reward-category counts."""


class Judging:
    """Of one agent worker. `close` ends what rewards started."""

    def __init__(self, config: Config, function: RewardFunction | None) -> None:
        """`function`: the environment's; None: the agent function returns the reward, or its row names rules."""
        self._config, self._function = config, function
        self._row_rules = Weighted(config.rewards, REWARDS)
        self._closing = [self._row_rules, *([function] if isinstance(function, Weighted) else [])]

    def close(self) -> None:
        for each in self._closing:
            each.close()

    async def group(self, rollouts: Sequence[Rollout], prompt: Prompt, *, ask: Ask) -> list[float | None]:
        """The rewards of the rollouts of one prompt. Raises what the function raises, and ValueError for another
        number of them."""
        options, path = self._config.rewards, self._config.rewards.custom_group_rm_path
        said: Sequence[Any]
        if path is None:
            responses = [str(rollout.metadata.get("response", "")) for rollout in rollouts]
            said = await pairwise_judge(prompt.input, responses, options, ask)
        else:
            function: GroupRewardFunction = load_hook(path, flag="--custom-group-rm-path")
            told = {"label": prompt.label, "metadata": prompt.metadata, "prompt": prompt.input}
            said = await function(self._config, rollouts, **told)
        if len(said) != len(rollouts):
            raise ValueError(f"{len(said)} rewards for {len(rollouts)} rollouts")
        return [number_in(each, options.key(evaluation=False)) for each in said]

    async def reward(self, rollout: Rollout, prompt: Prompt, *, evaluation: bool, ask: Ask) -> float | None:
        """Raises what the function raises, and ValueError for what is no reward."""
        function = self._function or (self._row_rules if ROW_KEY in prompt.metadata else None)
        said: Any = rollout.metadata.get("reward")
        if function is not None:
            more: RewardMore = {"prompt": prompt.input, "evaluation": evaluation, "ask": ask}
            said = await function(
                self._config,
                rollout,
                response=rollout.metadata.get("response", ""),
                label=prompt.label,
                metadata=prompt.metadata,
                **named(function, more),
            )
        if isinstance(said, Mapping):
            rollout.metadata["reward_details"] = dict(said)
            category = self._config.rewards.log_reward_category
            if category is not None and category in said:
                rollout.metadata[CATEGORY] = str(said[category])
        return number_in(said, self._config.rewards.key(evaluation=evaluation))
