"""How a run's agents sample: the parameters of its flags, under the names of engines and of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from miles_lite.config.rollouts import Evaluation, Rollouts

Sampling: TypeAlias = Mapping[str, float | list[str]]
"""SGLang's sampling parameters."""

CLIENT_NAMES = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens", "stop": "stop"}
"""Those that OpenAI clients have, by SGLang's names."""


def sampling(options: Rollouts) -> Sampling:
    """The run's."""
    return {
        "temperature": options.rollout_temperature,
        "top_p": options.rollout_top_p,
        "top_k": options.rollout_top_k,
        "max_new_tokens": options.rollout_max_response_len,
        "stop": list(options.rollout_stop),
    }


def eval_sampling(rollouts: Rollouts, options: Evaluation) -> Sampling:
    """Those on held-out prompts: the run's, but for what is given."""
    given = {
        "temperature": options.eval_temperature,
        "top_p": options.eval_top_p,
        "max_new_tokens": options.eval_max_response_len,
    }
    return {**sampling(rollouts), **{name: value for name, value in given.items() if value is not None}}


def request_kwargs(sampling: Sampling) -> dict[str, float | list[str]]:
    """Under the names that OpenAI clients use, without what says nothing."""
    return {CLIENT_NAMES[name]: value for name, value in sampling.items() if name in CLIENT_NAMES and value != []}
