"""Supervised warm start: a model learns the format of transcripts before it is trained by reinforcement.

Invariant: the same packing, policy and token construction as in training; one process; the model folder changes in one
rename, at the end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from miles_lite.config.training import Optimizer
from miles_lite.errors import UserError
from miles_lite.init_model.transcripts import encode_transcript, read_transcripts
from miles_lite.sample import Sample
from miles_lite.train.batching import Batch
from miles_lite.train.learner import PASS_TOKENS
from miles_lite.train.learning_rate import learning_rate
from miles_lite.train.packing import Packed, forward_passes
from miles_lite.train.policy import Policy, load_model
from miles_lite.weights.folder import write_folder
from miles_lite.weights.transformers_compat import import_transformers

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
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    policy = Policy(load_model(folder))
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(folder)
    samples = [encode_transcript(tokenizer, messages) for messages in read_transcripts(transcripts_jsonl)]
    check_lengths(samples, context=policy.model.config.max_position_embeddings, path=transcripts_jsonl)
    losses, tokens = fit(policy, samples, steps=steps, batch=batch, lr=lr, seed=seed, threads=threads)
    replace_weights(policy, folder)
    return WarmStart(
        first_loss=float(np.mean(losses[:REPORTED])),
        last_loss=float(np.mean(losses[-REPORTED:])),
        tokens=tokens,
        seconds=time.perf_counter() - begin,
    )


def fit(
    policy: Policy, samples: Sequence[Sample], *, steps: int, batch: int, lr: float, seed: int, threads: int
) -> tuple[list[float], int]:
    """Train on the samples' masked tokens as `warm_start` does; the loss of each step, and the tokens processed."""
    options = Optimizer(lr=lr, lr_decay_style="cosine", lr_warmup_iters=max(1, steps // 10))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    losses = []
    tokens = 0
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step, chosen in zip(range(steps), draws(len(samples), batch, seed=seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options, total=steps)
            losses.append(backward(policy, [samples[index] for index in chosen], pool, threads=threads))
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            tokens += sum(len(samples[index]) for index in chosen)
    return losses, tokens


def backward(policy: Policy, samples: list[Sample], pool: ThreadPoolExecutor, *, threads: int) -> float:
    """Set the gradient of the mean negative log-likelihood of all trained tokens, and return that mean.

    The forward passes are shared out over threads, each with one core and gradients of its own: for a small model that
    beats several cores on each operation.
    """
    size, trained = len(samples), sum(sample.trained_tokens for sample in samples)
    batch = Batch(0, samples, np.ones(size), np.full(size, trained), [[list(range(size))]], [1])
    denominators = np.full(size, float(trained))
    passes = forward_passes(batch, range(size), denominators=denominators, limit=PASS_TOKENS["cpu"] // threads)
    shares = [passes[first::threads] for first in range(min(threads, len(passes)))]
    results = list(pool.map(lambda share: gradients(policy, share), shares))
    for parameter, *pieces in zip(policy.parameters(), *(each for _, each in results), strict=True):
        parameter.grad = torch.stack(pieces).sum(0) if len(pieces) > 1 else pieces[0]
    return sum(loss for loss, _ in results)


def gradients(policy: Policy, passes: Sequence[Packed]) -> tuple[float, list[Tensor]]:
    """The summed loss of some forward passes and its gradients, in the order of the policy's parameters."""
    parameters = list(policy.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    total = 0.0
    for packed in passes:
        loss = -(policy(packed)[0] @ packed.weights)
        for each, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            each.add_(gradient)
        total += float(loss.detach())
    return total, sums


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
        write_folder(policy.model, policy.model.state_dict(), written, dtype=torch.float32)
        for path in written.iterdir():
            path.replace(folder / path.name)
