"""What agent functions say of themselves, in the numbers that are logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from miles_lite.config.algorithms import ADVANTAGES
from miles_lite.config.training import Algorithm
from miles_lite.errors import RolloutError, Where

AGENT_TOTALS = ("turns", "tool_calls", "sandbox_failures")
MODEL_TIME, TOOL_TIME = "model_query_time_sum", "env_execution_time_sum"
AGENT_TIMES = (MODEL_TIME, TOOL_TIME, "eval_time", "agent_run_time", "sandbox_start_time")


def number(value: object) -> float | None:
    """A float of it; None for what is not a real number."""
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_rewards(metadata: Mapping[str, object], estimator: str) -> None:
    """Refuse what an advantage estimator reads of a rollout and could not: anything but finite numbers, or None where
    there is no reward. Raises RolloutError."""
    known = ADVANTAGES.get(estimator)
    if known is None or known.reads is None or not (given := metadata.get(known.reads)):
        return
    values = given.values() if isinstance(given, Mapping) else given
    for value in values if isinstance(values, Iterable) and not isinstance(values, str) else [values]:
        found = number(value)
        if value is not None and (found is None or not math.isfinite(found)):
            raise RolloutError(
                Where.REWARD, f"`{known.reads}` must hold finite numbers, or None ({estimator} reads it): {value!r:.80}"
            )


def check_reward(reward: float | None, options: Algorithm) -> None:
    """Refuse a reward that means nothing to the advantage estimator, unless another takes its place. Raises
    RolloutError."""
    least, name = options.estimator.least_reward, options.advantage_estimator
    earned = options.custom_reward_post_process_path is None
    if earned and least is not None and reward is not None and reward < least:
        raise RolloutError(
            Where.REWARD, f"the reward is {reward:g}, and --advantage-estimator {name} takes none below {least:g}"
        )


def agent_report(metadata: Mapping[str, object]) -> dict[str, float]:
    """The finite numbers in what an agent returned, `agent_metrics` over plain keys, times in seconds.

    An agent may leave the `_sum` of its time keys out: `model_query_time` is `model_query_time_sum`.
    """
    nested = metadata.get("agent_metrics")
    given = {**metadata, **nested} if isinstance(nested, dict) else metadata
    found = {name: number(given.get(name)) for name in AGENT_TOTALS}
    found |= {name: number(given.get(name, given.get(name.removesuffix("_sum")))) for name in AGENT_TIMES}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
