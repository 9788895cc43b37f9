"""The rollouts of one step in a file: what one run rolled out, and another trains on without engines.

    {"rollout_id": int, "metadata": {...}, "samples": [dict]}

Names are the field's (miles' `--save-debug-rollout-data`), as far as it has them; one dict per sample, with what is
known of its rollout. `metadata["rollouts"]` has that of every rollout, in order, also of those without samples.

Invariant: what `read` gives trains as what `write` was given. Arrays are torch tensors, everything else is plain, so
that a file is read without running anything that is in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from miles_lite.errors import UserError, Where, user_error, writing
from miles_lite.model_folder import foreign_id
from miles_lite.process.drafted import drafted
from miles_lite.rollout.plain_values import plain
from miles_lite.sample import Failure, Group, LocalSamples, Rollout, Sample, Spans, Status

ARRAYS = {
    "tokens": "tokens",
    "loss_mask": "loss_mask",
    "rollout_log_probs": "logprobs",
    "rollout_temperatures": "temperatures",
    "weight_versions": "weight_versions",
    "rollout_routed_experts": "routed_experts",
}
"""What they are called in the file, and here."""
TIMES = "started_at", "finished_at", "ended_version"
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, EOFError, OSError, RuntimeError, UnpicklingError)
"""What reading raises of a file that is something else, or broken."""


def path_of(pattern: str, rollout_id: int) -> Path:
    """The file of one step."""
    return Path(pattern.replace("{rollout_id}", str(rollout_id)))


def write(path: Path, rollout_id: int, groups: Sequence[Group]) -> None:
    """The groups of a step, their samples fetched one rollout at a time. Raises UserError when the disk is full."""
    samples: list[dict[str, Any]] = []
    rollouts: list[dict[str, Any]] = []
    for group in groups:
        for rollout in group.rollouts:
            rollouts.append(_told(group, rollout))
            samples += [rollouts[-1] | _written(sample) for sample in rollout.fetch()]
    whole = {"rollout_id": rollout_id, "metadata": {"rollouts": rollouts}, "samples": samples}
    with writing("the rollouts of a step", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafted(path) as draft:
            torch.save(whole, draft)


def read(path: Path, *, vocabulary: int | None = None) -> list[Group]:
    """What `write` was given. Raises UserError for a file that is missing, or none of its, and for a sample with ids
    that a model of `vocabulary` has not."""
    if not path.is_file():
        raise UserError(f"--load-debug-rollout-data: no file {path}: --save-debug-rollout-data of a run writes it")
    with user_error(f"--load-debug-rollout-data {path}: not as --save-debug-rollout-data writes it", *DAMAGED):
        return parse(path, vocabulary=vocabulary)


def parse(path: Path, *, vocabulary: int | None = None) -> list[Group]:
    """The same. Raises one of DAMAGED."""
    return _groups(torch.load(path, weights_only=True, map_location="cpu"), vocabulary)


def _groups(whole: dict[str, Any], vocabulary: int | None) -> list[Group]:
    samples: dict[int, list[Sample]] = {}
    for told in whole["samples"]:
        mine = samples.setdefault(told["index"], [])
        where = f"rollout {told['index']}, sample {len(mine)}"
        mine.append(_sample(told, where))
        if vocabulary is not None and (strange := foreign_id(mine[-1].tokens, vocabulary)) is not None:
            raise ValueError(f"{where}: {strange}")
    groups: dict[int, Group] = {}
    for told in whole["metadata"]["rollouts"]:
        group = groups.setdefault(told["group_index"], Group(told["group_index"], told["prompt"]))
        group.rollouts.append(_rollout(told, samples.get(told["index"], [])))
    return list(groups.values())


def _told(group: Group, rollout: Rollout) -> dict[str, Any]:
    """What is known of a rollout."""
    return {
        "group_index": group.index,
        "index": rollout.index,
        "prompt": plain(group.prompt),
        "reward": plain(rollout.reward),
        "rollout_status": rollout.status.value,
        "failure": None if rollout.failure is None else [rollout.failure.where.value, rollout.failure.why],
        "rollout_metadata": plain(rollout.metadata),
        "teacher": rollout.teacher,
        "spans": dataclasses.asdict(rollout.spans),
        **{name: getattr(rollout, name) for name in TIMES},
    }


def _written(sample: Sample) -> dict[str, Any]:
    arrays = {there: getattr(sample, here) for there, here in ARRAYS.items()}
    tensors = {name: None if array is None else torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    lengths = {"response_length": len(sample) - sample.prompt_length}
    return {**tensors, **lengths, "status": sample.status.value, "metadata": plain(sample.metadata)}


def _rollout(told: dict[str, Any], samples: list[Sample]) -> Rollout:
    if told["reward"] is not None and not math.isfinite(told["reward"]):
        raise ValueError(f"rollout {told['index']} has the reward {told['reward']}")
    return Rollout(
        told["index"],
        told["group_index"],
        [sample.record() for sample in samples],
        stored=LocalSamples(samples) if samples else None,
        reward=told["reward"],
        status=Status(told["rollout_status"]),
        failure=None if told["failure"] is None else Failure(Where(told["failure"][0]), told["failure"][1]),
        metadata=told["rollout_metadata"],
        teacher=told.get("teacher", ""),  # files of before have none, nor what follows
        spans=Spans(**told.get("spans", {})),
        **{name: told[name] for name in TIMES if name in told},
    )


def _sample(told: dict[str, Any], where: str) -> Sample:
    tensors = {here: told[there] for there, here in ARRAYS.items()}
    taken: dict[str, Any] = {name: None if each is None else each.numpy() for name, each in tensors.items()}
    return Sample(**taken, status=Status(told["status"]), metadata=told["metadata"]).validate(where)
