"""What each token of a rank's samples weighs in the loss of its step, and what it is credited with.

Invariant: pure, of a batch and options; a token that is in no component is not scored. Nothing here knows how tokens
are laid out: a sample's tokens are in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import NOT_SAMPLED, Sample
from miles_lite.train.batching import Batch
from miles_lite.train.reductions import REDUCTIONS, Counts
from miles_lite.train.served_teacher import TeacherScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The N tokens of a sample that are scored; each stream float32 [N].

    places      int64 [N], where they stand in the sample
    policy      share in the policy component, 0 where the token is not of it
    imitation   in the imitation component
    advantages  what the group estimator credits them with
    teacher     the number of the sample's teacher, the same for all
    teacher_logprobs  what a teacher that is asked by sample says; 0 where none is
    teacher_top_ids   int64 [N, K], the tokens that it finds likeliest there; teacher_top_logprobs: what it says of them
    staleness   training steps between the weights that sampled them and those that are trained
    """

    places: np.ndarray
    policy: np.ndarray
    imitation: np.ndarray
    advantages: np.ndarray
    staleness: np.ndarray
    teacher: np.ndarray
    teacher_logprobs: np.ndarray
    teacher_top_ids: np.ndarray
    teacher_top_logprobs: np.ndarray


def share_out(
    batch: Batch[Sample],
    options: Algorithm,
    *,
    imitated: list[int],
    taught: Mapping[int, TeacherScores] | None = None,
) -> list[Shares]:
    """Of each of the batch's samples. `imitated`: tokens of the imitation component per step, over all ranks.
    `taught`: what teachers say of some samples."""
    denominators = np.ones(len(batch.samples))
    told = np.ones(len(batch.samples))
    counts = Counts(
        sample=np.array([sample.trained_tokens for sample in batch.samples], np.float64),
        rollout=batch.rollout_tokens.astype(np.float64),
        prompt=batch.prompt_tokens.astype(np.float64),
        length=float(options.loss_constant_length or 1),
    )
    for micro_batches, size, tokens in zip(batch.steps, batch.sizes, imitated, strict=True):
        chosen = [index for micro_batch in micro_batches for index in micro_batch]
        denominators[chosen] = REDUCTIONS[options.reduction](counts, size)[chosen]
        told[chosen] = max(tokens, 1)
    return [
        _shares(
            batch,
            index,
            denominator=denominators[index],
            told=told[index] if options.echo_coef else None,
            teacher=list(options.teachers).index(batch.teachers[index]) if len(options.teachers) > 1 else 0,
            taught=(taught or {}).get(index)
            or TeacherScores.nothing(len(batch.samples[index]), options.opd_log_prob_top_k),
        )
        for index in range(len(batch.samples))
    ]


def imitated_tokens(batch: Batch[Sample], options: Algorithm) -> list[int]:
    """Tokens of the imitation component in each step, of this rank."""
    return [
        sum(int(batch.samples[index].observation_mask.sum()) for micro_batch in step for index in micro_batch)
        if options.echo_coef
        else 0
        for step in batch.steps
    ]


def _shares(
    batch: Batch[Sample],
    index: int,
    *,
    denominator: float,
    told: float | None,
    teacher: int,
    taught: TeacherScores,
) -> Shares:
    sample = batch.samples[index]
    trained = sample.loss_mask == 1
    chosen = trained if told is None else trained | sample.observation_mask
    places = np.flatnonzero(chosen)
    turns = batch.turn_advantages.get(index)
    advantages = np.full(len(places), batch.advantages[index], np.float32)
    if turns is not None:
        advantages = np.asarray(turns, np.float32)[np.clip(sample.turns[places], 0, len(turns) - 1)]
    versions = sample.weight_versions[places]
    return Shares(
        places=places,
        policy=np.where(trained[places], np.float32(1.0 / denominator), np.float32(0)),
        imitation=np.zeros(len(places), np.float32)
        if told is None
        else np.where(sample.observation_mask[places], np.float32(1.0 / told), np.float32(0)),
        advantages=advantages,
        teacher=np.full(len(places), teacher, np.float32),
        teacher_logprobs=taught.logprobs[places],
        teacher_top_ids=taught.top_ids[places],
        teacher_top_logprobs=taught.top_logprobs[places],
        staleness=np.where(versions == NOT_SAMPLED, 0, batch.rollout_id - versions).astype(np.float32),
    )
