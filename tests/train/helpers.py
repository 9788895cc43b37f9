"""What the trainer's tests share: a configuration, samples and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miles_lite.config.model import Checkpoint
from miles_lite.config.options import Config, parse
from miles_lite.config.training import Algorithm
from miles_lite.sample import NOT_SAMPLED, Sample
from miles_lite.train.batching import Batch, batch_of
from miles_lite.train.building import build_learner
from miles_lite.train.checkpoint import Saver
from miles_lite.train.learner import Learner
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.streams import Streams
from miles_lite.train.shares import Shares, share_out

CORPUS = ["the quick brown fox jumps over the lazy dog", "you are a helpful assistant", "0 1 2 3 4 5 6 7 8 9"] * 5
SIZE = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "vocab_size": 288, "context": 256}


def make_config(model: Path, *flags: str) -> Config:
    required = ["--hf-checkpoint", str(model), "--prompt-data", "unused.jsonl", "--rollout-batch-size", "2"]
    required += ["--n-samples-per-prompt", "4", "--num-rollout", "10", "--lr", "1e-3", "--train-threads", "1"]
    return parse([*required, *flags])[0]


def make_sample(random: np.random.Generator, *, prompt: int, turns: int = 1, vocabulary: int = 280) -> Sample:
    """A sample of several turns: prompt, then sampled and observed stretches in turn."""
    mask = np.concatenate(
        [np.zeros(prompt), *[np.r_[np.ones(random.integers(2, 9)), np.zeros(3)] for _ in range(turns)]]
    )
    trained = mask == 1
    size = len(mask)
    return Sample(
        tokens=random.integers(0, vocabulary, size).astype(np.int32),
        loss_mask=mask.astype(np.uint8),
        logprobs=np.where(trained, -random.uniform(0.5, 6, size), 0).astype(np.float32),
        temperatures=np.where(trained, random.choice([0.7, 1.0]), 1).astype(np.float32),
        weight_versions=np.where(trained, 0, NOT_SAMPLED).astype(np.int32),
    ).validate()


def joined(sample: Sample, more: Sample, *, at: int) -> Sample:
    """What branches off a sample after `at` tokens."""
    parts: dict[str, Any] = {
        name: np.concatenate([getattr(sample, name)[:at], getattr(more, name)])
        for name in ("tokens", "loss_mask", "logprobs", "temperatures", "weight_versions")
    }
    return Sample(**parts).validate()


def make_streams(new: torch.Tensor, **others: Any) -> Streams:
    """Of tokens whose logprobs are `new`, float [N]: all of one sample, sampled as they are now, each with the
    advantage 1; with `others` in their places."""
    usual = {
        "new": new,
        "entropy": torch.ones_like(new),
        "old": new.detach(),
        "reference": None,
        "rollout_logprobs": new.detach(),
        "in_context": torch.ones_like(new, dtype=torch.bool),
        "advantages": torch.ones_like(new),
        "sequences": Sequences(torch.zeros_like(new, dtype=torch.long), 1),
    }
    return Streams(**usual | others)


def make_samples(seed: int, count: int) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [
        make_sample(random, prompt=int(random.integers(3, 30)), turns=int(random.integers(1, 4))) for _ in range(count)
    ]


def gradient_of(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The gradients of parameters that all have one, in one row."""
    rows = []
    for parameter in parameters:
        assert parameter.grad is not None
        rows.append(parameter.grad.flatten())
    return torch.cat(rows)


def shares_of(batch: Batch) -> list[Shares]:
    """As the plain algorithm shares out a batch."""
    return share_out(batch, Algorithm(), imitated=[0] * len(batch.steps))


def make_batch(
    samples: Sequence[Sample],
    advantages: Sequence[float] | np.ndarray,
    *,
    steps: list[list[list[int]]] | None = None,
    rollouts: Sequence[int] | None = None,
) -> Batch:
    """One rollout per sample; one step with one micro-batch unless told otherwise."""
    batch = batch_of(samples, advantages, steps=steps)
    if rollouts is not None:
        batch.sizes = [replace(size, rollouts=count) for size, count in zip(batch.sizes, rollouts, strict=True)]
    return batch


def save_checkpoint(learner: Learner, folder: Path, *, iteration: int) -> None:
    """Write one, and wait for it. Collective."""
    saver = Saver(Checkpoint())
    saver.begin(learner, folder, iteration=iteration)
    saver.finish()


def learner(model_dir: Path, *flags: str) -> Learner:
    return build_learner(make_config(model_dir, *flags), device=torch.device("cpu"))


def gradient(learner: Learner) -> torch.Tensor:
    return gradient_of(learner.policy.parameters())


def parameters(learner: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.policy.parameters()])
