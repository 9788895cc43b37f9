"""Rewards: who judges a rollout, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from miles_lite.config.choices import RewardRule
from miles_lite.config.option import option
from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError
from miles_lite.process.addresses import http_url

BOXED = "boxed_"
NEED_NO_LABEL = frozenset(
    (RewardRule.RANDOM, RewardRule.IFEVAL, RewardRule.CODE, RewardRule.REMOTE_RM, RewardRule.LLM_JUDGE)
)
"""Rules that read the row's metadata instead, or nothing."""


RANGES: Mapping[RewardRule, tuple[float, float]] = dict.fromkeys(RewardRule, (0.0, 1.0)) | {
    RewardRule.DAPO: (-1.0, 1.0),
    RewardRule.REMOTE_RM: (-math.inf, math.inf),
}
"""Between which numbers what a rule says under `score` is."""


@dataclass(frozen=True)
class Chosen:
    """A rule of --rm-type. `boxed`: it sees what stands in the response's last \\boxed{} alone."""

    name: str
    rule: RewardRule
    weight: float = 1.0
    boxed: bool = False


@dataclass(frozen=True)
class Overlong:
    """DAPO's soft overlong punishment (arXiv:2503.14476, section 3.4): what is taken from the reward of a response
    within `buffer` tokens of `longest`, which falls from 0 to `-factor` there."""

    longest: int
    buffer: int
    factor: float

    def penalty(self, lengths: Iterable[int]) -> float:
        """Of a rollout whose responses have so many tokens: that of the longest; at most 0."""
        within = max(lengths, default=0) - (self.longest - self.buffer)
        return -self.factor * min(1.0, max(0, within) / self.buffer)


def chosen(given: Iterable[str], *, given_as: str) -> tuple[Chosen, ...]:
    """The rules behind NAME and NAME=WEIGHT. Raises UserError naming `given_as`."""
    rules = tuple(_chosen(each, given_as) for each in given)
    names = [each.name for each in rules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{given_as}: {', '.join(sorted(twice))} is there twice; give it once, with its weight")
    return rules


def least_reward(rules: Iterable[Chosen]) -> float:
    """Of their weighed sum: -inf where nobody knows."""
    return sum(min(each.weight * bound for bound in RANGES[each.rule]) for each in rules if each.weight)


def _chosen(given: str, given_as: str) -> Chosen:
    name, equals, told = given.partition("=")
    bare = name.removeprefix(BOXED)
    if bare not in list(RewardRule):
        hint = nearest(bare, RewardRule)
        known = ", ".join(RewardRule)
        raise UserError(f"{given_as}: invalid choice: {name!r}{hint} (choose from {known}; boxed_ may be in front)")
    weight = float(told) if equals and _is_number(told) else 1.0
    if equals and not (_is_number(told) and math.isfinite(weight)):
        raise UserError(f"{given_as} {given}: the weight must be a finite number")
    return Chosen(name, RewardRule(bare), weight, boxed=name != bare)


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).replace("e-", "", 1).isdigit()


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """rewards: who judges a rollout."""

    custom_rm_path: str | None = option(
        None,
        help="dotted path or file.py:name of async (config, rollout, *, response, label, metadata) -> float or None",
    )
    custom_group_rm_path: str | None = option(
        None,
        help="dotted path or file.py:name of async (config, rollouts, *, label, metadata) -> rewards: all rollouts of "
        "a prompt are judged together",
    )
    group_rm: bool = option(
        False, help="--custom-rm-path is such a function; --rm-type llm_judge compares responses in pairs"
    )
    rm_type: tuple[str, ...] = option(
        (),
        help="built-in reward, or several as NAME=WEIGHT, which are added: " + ", ".join(RewardRule) + "; boxed_NAME "
        "judges what is in the last \\boxed{}; a row's metadata may name its own under rm_type",
        check=lambda given: chosen(given, given_as="--rm-type"),
    )
    rm_url: str | None = option(
        None,
        help="remote_rm: what is posted {prompt, response, label}; llm_judge: an OpenAI base URL in the place of "
        "our engines",
        check=lambda url: url is None or http_url(url, given_as="--rm-url"),
    )
    rm_timeout: float = option(60.0, help="seconds a built-in reward may take", above=0)
    rm_retries: int = option(3, help="remote_rm, llm_judge: how often a request that failed is made again", least=0)
    rm_concurrency: int = option(64, help="remote_rm, llm_judge: requests at once, per agent worker", least=1)
    rm_processes: int = option(
        2, help="processes, per agent worker, of rewards that parse or run what models wrote", least=1
    )
    rm_judge_prompt: str | None = option(
        None,
        help="llm_judge: file of the question, with {prompt}, {response} and {label} in it; with --group-rm {prompt}, "
        "{first} and {second}",
        path=True,
    )
    reward_key: str | None = option(None, help="key of the reward, where a reward is an object (default: score)")
    eval_reward_key: str | None = option(
        None, help="the same on held-out prompts (default: --reward-key)", with_="eval_interval"
    )
    overlong_buffer_len: int | None = option(
        None,
        help="tokens before --rollout-max-response-len within which a response is too long: the nearer its end, the "
        "more is taken from its reward (DAPO's soft overlong punishment)",
        least=1,
    )
    overlong_penalty_factor: float = option(1.0, help="what is taken at most", above=0, with_="overlong_buffer_len")
    log_reward_category: str | None = option(None, help="key of an object's text whose shares are logged")

    @property
    def rules(self) -> tuple[Chosen, ...]:
        """What --rm-type names. Raises UserError."""
        return chosen(self.rm_type, given_as="--rm-type")

    def least(self, rules: Iterable[Chosen]) -> float | None:
        """The least reward that rules give; None where it is not known."""
        found = least_reward(rules)
        return found if self.reward_key is None and math.isfinite(found) else None

    @property
    def judged(self) -> tuple[str, ...]:
        """What a judge's question has places for: a response, or the two of a pair."""
        return ("first", "second") if self.group_rm else ("response",)

    @property
    def judges_groups(self) -> bool:
        """Whether rollouts wait for the others of their prompt."""
        return self.group_rm or self.custom_group_rm_path is not None

    def settled(self) -> Self:
        """With the function of --group-rm under the flag that it is one of."""
        if not self.group_rm or self.custom_rm_path is None:
            return self
        return replace(self, custom_rm_path=None, custom_group_rm_path=self.custom_rm_path)

    def key(self, *, evaluation: bool) -> str:
        """Of the reward in an object."""
        return (self.eval_reward_key if evaluation else None) or self.reward_key or "score"
