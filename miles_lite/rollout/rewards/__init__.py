"""Rewards: what the agent function returned, a user's function, or built-in rules (`REWARDS`).

One more rule is a module here, a member of `RewardRule` and a line of REWARDS.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from miles_lite.config.choices import RewardRule
from miles_lite.config.options import Config
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import RewardFunction, load_hook
from miles_lite.rollout.rewards import (
    choice_letter,
    code_tests,
    dapo,
    final_answer,
    instructions,
    llm_judge,
    matching,
    math_answer,
    remote_rm,
    word_f1,
)
from miles_lite.rollout.rewards.answer import Answer, Pure
from miles_lite.rollout.rewards.weighted import Registry, Weighted

MATH_VERIFY = ("math_verify", "math-verify")

REWARDS: Registry = {
    RewardRule.EXACT_MATCH: Pure(matching.exact_match),
    RewardRule.CONTAINS: Pure(matching.contains),
    RewardRule.BOXED: Pure(final_answer.boxed),
    RewardRule.MATH: Pure(math_answer.math, apart=True, needs=MATH_VERIFY),
    RewardRule.DAPO: Pure(dapo.dapo),
    RewardRule.DEEPSCALER: Pure(math_answer.deepscaler, apart=True, needs=MATH_VERIFY),
    RewardRule.GPQA: Pure(choice_letter.gpqa),
    RewardRule.F1: Pure(word_f1.f1),
    RewardRule.IFEVAL: Pure(instructions.ifeval, apart=True),
    RewardRule.CODE: Pure(code_tests.code, apart=True),
    RewardRule.REMOTE_RM: remote_rm.remote_rm,
    RewardRule.LLM_JUDGE: llm_judge.llm_judge,
    RewardRule.RANDOM: Pure(matching.random_reward),
}
"""By the name that --rm-type gives them."""


def load_reward(config: Config) -> RewardFunction | None:
    """The run's; None without --custom-rm-path and --rm-type: then the agent function returns the reward.

    Raises UserError when a package is missing.
    """
    options = config.rewards
    if options.custom_rm_path:
        return load_hook(options.custom_rm_path, flag="--custom-rm-path")
    if not options.rm_type or options.judges_groups:
        return None
    check_packages(each.rule for each in options.rules)
    return Weighted(options, REWARDS)


def check_packages(rules: Iterable[RewardRule]) -> None:
    """Refuse a rule whose package is not installed. Raises UserError."""
    for rule in rules:
        needed = REWARDS[rule]
        if isinstance(needed, Pure) and needed.needs is not None:
            module, package = needed.needs
            if importlib.util.find_spec(module) is None:
                raise UserError(f"--rm-type {rule} needs {package}: pip install {package}")


def check_row(rule: RewardRule, *, label: Any, metadata: Mapping[str, Any]) -> None:
    """Refuse a row by which a rule cannot judge, as it says of a word; rules of packages, and those that ask others,
    take any. Raises UserError."""
    judge = REWARDS[rule]
    if isinstance(judge, Pure) and judge.needs is None:
        with user_error(f"--rm-type {rule}", Exception):
            judge.function(Answer(response="x", label=label, metadata=metadata))
