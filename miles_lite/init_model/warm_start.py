"""Supervised warm start: a model learns the format of transcripts before it is trained by reinforcement.

Invariant: the same learner and token construction as in training; one process; the model folder changes in one rename,
at the end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from miles_lite.config.algorithms import SFT
from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.errors import UserError
from miles_lite.init_model.transcripts import encode_transcript, read_transcripts
from miles_lite.sample import Sample
from miles_lite.train.batching import batch_of
from miles_lite.train.data import Replicated
from miles_lite.train.learner import Learner
from miles_lite.train.loading import load_model
from miles_lite.train.policy import Policy
from miles_lite.weights.compat import import_transformers
from miles_lite.weights.gather import Published
from miles_lite.weights.tensor_files import write_folder

REPORTED = 10
"""Steps that the first and the last loss are averaged over."""


@dataclass(frozen=True)
class WarmStart:
    """What a warm start did: mean losses in nats per trained token, tokens processed, seconds."""

    first_loss: float
    last_loss: float
    tokens: int
    seconds: float


def warm_start(
    model_dir: Path | str,
    transcripts_jsonl: Path | str,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    threads: int,
) -> WarmStart:
    """Train the model in `model_dir` on the assistant turns of `{"messages": [...]}` lines, and write it back.

    `batch` transcripts per step, drawn anew each epoch; AdamW, gradient norm clipped to 1, linear warm-up over a tenth
    of the steps, then cosine decay to 0: with less, the last batches tilt what the transcripts balance. Raises
    UserError when files are missing or malformed.
    """
    begin = time.perf_counter()
    folder = Path(model_dir)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    policy = Policy(load_model(folder))
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(folder)
    samples = [encode_transcript(tokenizer, messages) for messages in read_transcripts(transcripts_jsonl)]
    check_lengths(samples, context=policy.model.config.max_position_embeddings, path=transcripts_jsonl)
    losses, tokens = fit(policy, samples, steps=steps, batch=batch, lr=lr, seed=seed)
    replace_weights(policy, folder)
    return WarmStart(
        first_loss=float(np.mean(losses[:REPORTED])),
        last_loss=float(np.mean(losses[-REPORTED:])),
        tokens=tokens,
        seconds=time.perf_counter() - begin,
    )


def fit(
    policy: Policy, samples: Sequence[Sample], *, steps: int, batch: int, lr: float, seed: int
) -> tuple[list[float], int]:
    """Train on the samples' masked tokens as `warm_start` does; the loss of each step, and the tokens processed."""
    learner = Learner(
        policy=policy,
        strategy=Replicated(),
        device=torch.device("cpu"),
        algorithm=Algorithm(loss_type=SFT, calculate_per_token_loss=True),
        options=Optimizer(lr=lr, lr_decay_style="cosine", lr_warmup_iters=max(1, steps // 10)),
        total_updates=steps,
    )
    losses, tokens = [], 0
    for chosen in islice(draws(len(samples), batch, seed=seed), steps):
        taken = [samples[index] for index in chosen]
        losses.append(learner.train(batch_of(taken, np.zeros(len(taken))))["train/loss"])
        tokens += sum(map(len, taken))
    return losses, tokens


def draws(size: int, batch: int, *, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices below `size`, each index once per epoch."""
    generator = np.random.default_rng(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch:
            queue.extend(generator.permutation(size).tolist())
        yield queue[:batch]
        queue = queue[batch:]


def check_lengths(samples: Sequence[Sample], *, context: int, path: Path | str) -> None:
    """Raises UserError for a transcript of more than `context` tokens."""
    longest = max(map(len, samples))
    if longest > context:
        raise UserError(f"{path}: a transcript has {longest} tokens, the model's context is {context}")


def replace_weights(policy: Policy, folder: Path) -> None:
    """Put the policy's weights into its model folder, tokenizer and template staying as they are."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        written = Path(scratch) / "model"
        write_folder(Published(policy.model, policy.weights(), torch.float32), written)
        for path in written.iterdir():
            path.replace(folder / path.name)
