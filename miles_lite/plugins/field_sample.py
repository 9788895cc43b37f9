"""A rollout under the field's names: what miles' plug-ins call a Sample.

Invariant: it is a view; what a plug-in changes of it counts only where its contract says so. Arrays are fetched when
they are first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np

from miles_lite.sample import NOT_SAMPLED, Group, Rollout
from miles_lite.sample import Sample as OwnSample
from miles_lite.sample import Status as OwnStatus


class FieldStatus(Enum):
    """How a sample ended."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


TOKENS = ("tokens", "response_length", "loss_mask", "rollout_log_probs", "rollout_routed_experts", "weight_versions")


class Sample:
    """Fields as their plug-ins name them; `loss_mask` and `rollout_log_probs` are of the response.

    `Sample(prompt=..., ...)` makes one, as there.
    """

    Status = FieldStatus

    group_index: int | None
    index: int | None
    prompt: Any
    response: str
    label: Any
    reward: Any
    status: FieldStatus
    metadata: dict[str, Any]
    tokens: list[int]
    response_length: int
    loss_mask: list[int] | None
    rollout_log_probs: list[float] | None
    rollout_routed_experts: np.ndarray | None
    weight_versions: list[str]

    def __init__(self, *, fetch: Callable[[], dict[str, Any]] | None = None, **given: Any) -> None:
        self.__dict__.update(
            group_index=None,
            index=None,
            rollout_id=None,
            prompt="",
            response="",
            label=None,
            reward=None,
            status=FieldStatus.PENDING,
            metadata={},
            train_metadata=None,
            multimodal_inputs=None,
            remove_sample=False,
            routing_key=None,
            non_generation_time=0.0,
        )
        nothing = dict.fromkeys(TOKENS) | {"tokens": [], "response_length": 0, "weight_versions": []}
        if fetch is None:
            self.__dict__.update(nothing)
        self._fetch = fetch
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name not in TOKENS or self.__dict__.get("_fetch") is None:
            raise AttributeError(f"a sample of the field has no '{name}' here")
        assert self._fetch is not None
        fetched = {**dict.fromkeys(TOKENS), **self._fetch()}
        self.__dict__.update({key: value for key, value in fetched.items() if key not in self.__dict__})
        return self.__dict__[name]

    def to_dict(self) -> dict[str, Any]:
        """All that is known of it, by name; the status as its word."""
        known = {name: value for name, value in self.__dict__.items() if name != "_fetch"}
        return {**known, **{name: getattr(self, name) for name in TOKENS}, "status": self.status.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sample:
        """What `to_dict` gave."""
        return cls(**{**data, "status": FieldStatus(data["status"])})

    def get_reward_value(self, args: Any) -> Any:
        """The reward, or that of an object under --reward-key."""
        key = getattr(args, "reward_key", None) or "score"
        return self.reward[key] if isinstance(self.reward, dict) else self.reward

    @property
    def effective_response_length(self) -> int:
        return int(sum(self.loss_mask)) if self.loss_mask is not None else int(self.response_length)


def of_rollout(rollout: Rollout, prompt: dict[str, Any], **known: Any) -> Sample:
    """A view of a rollout; `prompt` as `Group.prompt` has it."""
    metadata = {**prompt.get("metadata", {}), **rollout.metadata}
    return Sample(
        fetch=lambda: arrays(rollout.fetch()),
        index=rollout.index,
        rollout_id=rollout.index,
        group_index=rollout.group_index,
        **{
            "prompt": prompt.get("input", ""),
            "label": prompt.get("label"),
            "response": str(rollout.metadata.get("response", "")),
            "reward": rollout.metadata.get("reward_details", rollout.reward),
            "status": FieldStatus(rollout.status.value),
            "metadata": metadata,
            **known,
        },
    )


def of_group(group: Group) -> list[Sample]:
    return [of_rollout(rollout, group.prompt) for rollout in group.rollouts]


def arrays(samples: Sequence[OwnSample]) -> dict[str, Any]:
    """The arrays of a rollout's first sample, as lists."""
    if not samples:
        return {"tokens": [], "response_length": 0, "weight_versions": []}
    sample = samples[0]
    start = sample.prompt_length
    versions = sorted({int(each) for each in sample.weight_versions if each != NOT_SAMPLED})
    return {
        "tokens": sample.tokens.tolist(),
        "response_length": len(sample) - start,
        "loss_mask": sample.loss_mask[start:].tolist(),
        "rollout_log_probs": sample.logprobs[start:].tolist(),
        "rollout_routed_experts": sample.routed_experts,
        "weight_versions": [str(each) for each in versions],
    }


def to_own(sample: Any, *, temperature: float, version: int) -> OwnSample:
    """What a generate function filled in, as our sample. Raises ValueError for lengths that do not agree."""
    tokens = np.asarray(sample.tokens, np.int32)
    length = int(sample.response_length)
    mask = np.ones(length, np.uint8) if sample.loss_mask is None else np.asarray(sample.loss_mask, np.uint8)
    if sample.rollout_log_probs is None:
        raise ValueError("the generate function left rollout_log_probs out: ask the engine with return_logprob")
    logprobs = np.asarray(sample.rollout_log_probs, np.float32)
    if not len(mask) == len(logprobs) == length <= len(tokens):
        raise ValueError(
            f"the generate function's sample has {len(tokens)} tokens, response_length {length}, {len(mask)} in "
            f"loss_mask and {len(logprobs)} in rollout_log_probs: the last three must be equal"
        )
    before = len(tokens) - length
    whole = np.concatenate([np.zeros(before, np.uint8), mask])
    told = [int(each) for each in sample.weight_versions or () if str(each).isdigit()]
    return OwnSample(
        tokens=tokens,
        loss_mask=whole,
        logprobs=np.where(whole == 1, np.concatenate([np.zeros(before, np.float32), logprobs]), 0).astype(np.float32),
        temperatures=np.where(whole == 1, temperature, 1.0).astype(np.float32),
        weight_versions=np.where(whole == 1, min(told, default=version), NOT_SAMPLED).astype(np.int32),
        routed_experts=_experts(sample.rollout_routed_experts),
        status=OwnStatus(sample.status.value),
    ).validate("the generate function's sample")


def _experts(given: Any) -> np.ndarray | None:
    """As an array; lists of numbers, too."""
    return np.asarray(given, np.int32) if isinstance(given, list) else given
