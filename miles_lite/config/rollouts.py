"""Rollouts: prompts in, rewarded samples out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from miles_lite.config.environments import ENVIRONMENTS, SOURCE, TRAIN, arguments, is_source, named
from miles_lite.config.eval_sets import read_eval_config
from miles_lite.config.folders import absolute
from miles_lite.config.option import OTHERS, option
from miles_lite.errors import UserError


def _located(pairs: tuple[str, ...]) -> tuple[str, ...]:
    """Names and sources in turn, the paths made absolute."""
    return tuple(_source(each) if at % 2 else each for at, each in enumerate(pairs))


def _source(name: str) -> str:
    return name if is_source(name) else absolute(name)


def mixed(source: str) -> list[tuple[str, float]]:
    """The sources of SOURCE=WEIGHT,SOURCE=WEIGHT; an only one, of weight 1, of anything else. Raises UserError."""
    parts = [part.strip().rpartition("=") for part in source.split(",")]
    if not all(name and _WEIGHT.fullmatch(weight) for name, _, weight in parts):
        return [(source, 1.0)]
    if any(float(weight) == 0 for _, _, weight in parts):
        raise UserError(f"--prompt-data {source}: a weight is 0: leave that source out")
    return [(name, float(weight)) for name, _, weight in parts]


def located_sources(source: str) -> str:
    """The same with absolute paths."""
    parts = mixed(source)
    if parts == [(source, 1.0)]:
        return _source(source)
    return ",".join(f"{_source(name)}={weight:g}" for name, weight in parts)


MOST = 1_000_000
"""Steps of a run: more is a slip of the finger."""
_WEIGHT = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Data:
    """data: the prompts, and what they are of."""

    prompt_data: str = option(
        f"{SOURCE}:{TRAIN}",
        help="prompts: a JSONL, Parquet or Arrow file, a dataset's folder, or a pattern of them; SOURCE@[a:b] takes a "
        "slice, SOURCE=WEIGHT,SOURCE=WEIGHT mixes; environment:SPLIT is a split of --environment",
        path=located_sources,
    )
    environment: str | None = option(
        None,
        help="an agent function, prompts and a reward that belong together: NAME[:ARGUMENT] with NAME of "
        f"{', '.join(ENVIRONMENTS)}; {OTHERS}[:ARGUMENT]",
        check=lambda spec: None if spec is None else named(spec),
    )
    environment_args: str | None = option(
        None, help="what the environment is given: JSON or YAML, or a file of it", check=arguments
    )
    input_key: str = option("input", help="key of the prompt: a string or a list of chat messages")
    label_key: str | None = option(None, help="key of the label that rewards compare with")
    metadata_key: str = option("metadata", help="key of an object that reaches the agent function")
    tool_key: str = option("tools", help="key of the row's tools, which requests without an agent function offer")
    system_prompt: str | None = option(None, help="system message of prompts that have none")
    overlong_prompts: Literal["error", "skip"] = option(
        "error", help="prompts over the limit stop the run, or are left out and counted"
    )
    rollout_shuffle: bool = option(False, help="shuffle the prompts anew each epoch")
    rollout_seed: int = option(42, help="seed of the shuffle", least=0)
    easy_threshold: float | None = option(
        None, help="mean reward of its rollouts from which a prompt is easy: of those only --easy-fraction comes again"
    )
    easy_fraction: float = option(
        0.1, help="share of easy prompts that comes again", least=0, most=1, with_="easy_threshold"
    )
    hard_threshold: float | None = option(
        None, help="mean reward up to which a prompt is hard: of those only --hard-fraction comes again"
    )
    hard_fraction: float = option(
        0.1, help="share of hard prompts that comes again", least=0, most=1, with_="hard_threshold"
    )


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """rollouts: what is generated, and by whom."""

    num_rollout: int | None = option(None, help="training steps; or give --num-epoch", least=1, most=MOST)
    num_epoch: int | None = option(
        None, help="passes over the prompts, where --num-rollout is not given", least=1, with_="no num_rollout"
    )
    rollout_batch_size: int = option(help="prompt groups per rollout", least=1)
    n_samples_per_prompt: int = option(1, help="rollouts per prompt: the group size", least=1)
    over_sampling_batch_size: int | None = option(
        None, help="groups started at once (default: --rollout-batch-size)", least=1
    )
    dynamic_sampling_filter_path: str | None = option(
        None, help="dotted path or file.py:name of (group) -> Keep or bool: which groups are worth training on"
    )
    rollout_max_response_len: int = option(1024, help="new tokens per model call", least=1)
    rollout_max_prompt_len: int | None = option(None, help="longest prompt in tokens, longer ones are refused", least=1)
    max_seq_len: int | None = option(None, help="cut collected samples to this many tokens", least=1)
    rollout_temperature: float = option(1.0, help="sampling temperature")
    rollout_top_p: float = option(1.0, help="nucleus sampling", above=0, most=1)
    rollout_top_k: int = option(-1, help="top-k sampling; -1: off", least=-1)
    rollout_stop: tuple[str, ...] = option((), help="stop strings")
    rollout_stop_token_ids: tuple[int, ...] = option((), help="stop tokens, by id", least=0)
    custom_agent_function_path: str | None = option(
        None,
        help="dotted path or file.py:name of async run(base_url, prompt, request_kwargs, metadata, **kw) -> dict",
    )
    custom_generate_function_path: str | None = option(
        None,
        help="dotted path or file.py:name of async (args, sample, sampling_params) -> sample, in miles' signature: it "
        "speaks to the router itself",
    )
    rollout_function_path: str | None = option(
        None,
        help="dotted path or file.py:name of (args, rollout_id, data_source, evaluation=False) -> groups of samples, "
        "in miles' signature: the whole rollout",
    )
    none_reward_policy: Literal["drop", "zero", "error"] = option(
        "drop", help="what becomes of a rollout that ended with reward None"
    )
    rollout_timeout: float = option(600.0, help="seconds one agent may take", above=0)
    num_agent_workers: int = option(1, help="agent worker processes", least=1)
    agent_concurrency: int = option(64, help="agents at once per worker", least=1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """evaluation: held-out prompts."""

    eval_interval: int | None = option(None, help="evaluate every N rollouts, and before and after", least=1)
    eval_prompt_data: tuple[str, ...] = option(
        (), help="NAME PATH [NAME PATH ...]", path=_located, with_="eval_interval"
    )
    eval_config: str | None = option(
        None,
        help="YAML of held-out datasets with settings of their own, beside --eval-prompt-data",
        path=True,
        with_="eval_interval",
    )
    eval_function_path: str | None = option(
        None,
        help="dotted path or file.py:name of the same with evaluation=True: {dataset: {'rewards': [...]}}",
        with_="eval_interval",
    )
    n_samples_per_eval_prompt: int = option(1, help="rollouts per held-out prompt", least=1, with_="eval_interval")
    eval_max_response_len: int | None = option(
        None, help="default: --rollout-max-response-len", least=1, with_="eval_interval"
    )
    eval_temperature: float | None = option(None, help="default: --rollout-temperature", least=0, with_="eval_interval")
    eval_top_p: float | None = option(None, help="default: --rollout-top-p", above=0, most=1, with_="eval_interval")
    eval_top_k: int | None = option(None, help="default: --rollout-top-k", least=-1, with_="eval_interval")
    eval_input_key: str | None = option(None, help="default: --input-key", with_="eval_interval")
    eval_label_key: str | None = option(None, help="default: --label-key", with_="eval_interval")
    skip_eval_before_train: bool = option(False, help="no evaluation before the first step", with_="eval_interval")

    @property
    def datasets(self) -> dict[str, str]:
        """Prompt file by name, in the order given."""
        given = dict(zip(self.eval_prompt_data[::2], self.eval_prompt_data[1::2], strict=True))
        return given | {name: str(self.settings(name)["path"]) for name in self._configured}

    @property
    def _configured(self) -> Mapping[str, Mapping[str, Any]]:
        return {} if self.eval_config is None else read_eval_config(self.eval_config)

    def settings(self, name: str) -> Mapping[str, Any]:
        """What --eval-config says of a dataset."""
        return self._configured.get(name, {})

    def samples(self, name: str) -> int:
        """Rollouts per prompt of a dataset."""
        return int(self.settings(name).get("n_samples_per_eval_prompt", self.n_samples_per_eval_prompt))
