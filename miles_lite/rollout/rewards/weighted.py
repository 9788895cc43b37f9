"""The built-in rewards of a run as one reward function: each row's rules, weighed and added.

Invariant: a rule that breaks fails the rollout, so that no sum lacks a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from miles_lite.config.choices import RewardRule
from miles_lite.config.rewards import Chosen, Rewards, chosen
from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonMapping
from miles_lite.rollout.rewards.answer import Answer, Ask, Judge, Pure, Score, broken, number_in
from miles_lite.rollout.rewards.apart import Apart
from miles_lite.rollout.rewards.final_answer import last_boxed
from miles_lite.sample import Rollout

if TYPE_CHECKING:
    from miles_lite.config.options import Config

Registry: TypeAlias = Mapping[RewardRule, Pure | Judge]

ROW_KEY = "rm_type"
"""Of a row's metadata: the name of its rule, or a list of NAME and NAME=WEIGHT."""


class Weighted:
    """`hooks.RewardFunction`. Owns the processes of the rules that need some; `close` ends them."""

    def __init__(self, options: Rewards, registry: Registry) -> None:
        self._options, self._registry = options, registry
        self._rules = options.rules
        self._apart = Apart(options.rm_processes)
        self._room = asyncio.Semaphore(options.rm_concurrency)

    async def __call__(
        self,
        config: Config,
        rollout: Rollout,
        /,
        *,
        response: str,
        label: Any,
        metadata: dict[str, Any],
        prompt: str | list[dict[str, Any]] = "",
        evaluation: bool = False,
        ask: Ask | None = None,
    ) -> Score:
        """The weighted sum; of an only rule of weight 1, what it says. Several are in the rollout's metadata, too,
        under `rewards`."""
        seed = config.data.rollout_seed
        answer = Answer(
            response=response, label=label, prompt=prompt, metadata=metadata, index=rollout.index, seed=seed, ask=ask
        )
        rules = row_rules(metadata, self._rules)
        if not rules:
            raise broken(f"the row's metadata has no {ROW_KEY}, and there is no --rm-type")
        scores = await asyncio.gather(*(self._score(each, answer) for each in rules))
        if len(rules) == 1 and rules[0].weight == 1.0:
            return scores[0]
        key = self._options.key(evaluation=evaluation)
        numbers = {each.name: number_in(score, key) for each, score in zip(rules, scores, strict=True)}
        rollout.metadata["rewards"] = numbers
        given = [each.weight * value for each in rules if (value := numbers[each.name]) is not None]
        return sum(given) if len(given) == len(rules) else None

    def close(self) -> None:
        self._apart.close()

    async def _score(self, each: Chosen, answer: Answer) -> Score:
        seconds = self._options.rm_timeout
        rule = self._registry[each.rule]
        if each.boxed:
            answer = replace(answer, response=last_boxed(answer.response) or "")
        if isinstance(rule, Pure):
            if not rule.apart:
                return rule.function(answer)
            return await self._apart.score(rule, replace(answer, ask=None), seconds=seconds)
        async with self._room:
            return await rule(answer, self._options)


def row_rules(metadata: JsonMapping, default: Sequence[Chosen]) -> Sequence[Chosen]:
    """The rules of a row. Raises UserError for what names none."""
    named = metadata.get(ROW_KEY)
    if named is None:
        return default
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise UserError(f"metadata {ROW_KEY}: expected a name, or a list of NAME and NAME=WEIGHT, found {named!r:.200}")
    return chosen(names, given_as=f"metadata {ROW_KEY}")
