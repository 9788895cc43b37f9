"""How a run's agents sample: the parameters of its flags, under the names of engines and of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from miles_lite.config.eval_sets import SAMPLING
from miles_lite.config.rollouts import Evaluation, Rollouts

Sampling: TypeAlias = Mapping[str, float | list[str] | list[int]]
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
        **({"stop_token_ids": list(options.rollout_stop_token_ids)} if options.rollout_stop_token_ids else {}),
    }


def eval_sampling(rollouts: Rollouts, options: Evaluation, name: str = "") -> Sampling:
    """Those on held-out prompts: the run's, but for what is given, for all datasets or that of a name."""
    given = {
        "temperature": options.eval_temperature,
        "top_p": options.eval_top_p,
        "top_k": options.eval_top_k,
        "max_new_tokens": options.eval_max_response_len,
    }
    given |= {SAMPLING[key]: value for key, value in options.settings(name).items() if key in SAMPLING}
    return {**sampling(rollouts), **{key: value for key, value in given.items() if value is not None}}


def request_kwargs(sampling: Sampling) -> dict[str, float | list[str] | list[int]]:
    """Under the names that OpenAI clients use, without what says nothing."""
    return {CLIENT_NAMES[name]: value for name, value in sampling.items() if name in CLIENT_NAMES and value != []}
