"""What a training step costs against other ways to compute the same loss and gradient, on one device.

    python benchmarks/train_step.py [--json FILE] [--device cpu|cuda] [--repeats 3] [--samples 32] [--head-tokens 8192]

Needs torch and transformers, and for the last comparison TRL. Every comparison alternates its sides and takes the
smallest of their times: CPU seconds of one thread on a CPU, seconds on CUDA. Printed:

packed_vs_padded   tokens/s of packed rows, over padded batches of 8 that score trained tokens only   (asked: >= 2)
packed_vs_buckets  the same over right-padded batches of similar lengths                              (asked: >= 0.95)
padding            share of what packed rows compute that is padding                                  (asked: 0)
tree_speedup       8 leaves of 100 tokens behind a prefix of 400, over one sequence at a time         (asked: >= 2.9)
tree_share         what prefixes save, as a share of what they could: 1 - 1200 / 4000 of the time     (asked: >= 0.85)
head_peak_ratio    memory that scoring 8k tokens of a 151,936-word vocabulary takes beyond its inputs and gradients,
                   over scoring by checkpointed chunks of 2^27 logits                                 (asked: <= 0.35)
head_time_ratio    its time over theirs                                                               (asked: <= 0.8)
trl_ratio          tokens/s over TRL's GRPOTrainer on its own padded batch of the same samples        (asked: >= 1.5)
trl_loss_error     difference of the two losses, relative                                             (asked: <= 1e-4)
grad_error_max     largest difference of a parameter's gradient, packed and as a tree, from one padded sequence at a
                   time, relative; in float32
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from miles_lite.config.training import Algorithm
from miles_lite.sample import Sample
from miles_lite.train.attention import implementation
from miles_lite.train.batching import Batch, batch_of
from miles_lite.train.head import score
from miles_lite.train.losses.terms import clipped_policy_loss
from miles_lite.train.packing import Form, Packed, forward_passes
from miles_lite.train.policy import Policy
from miles_lite.train.shares import share_out
from miles_lite.weights.compat import import_transformers

WORDS, HEAD_WORDS, WIDTH = 8192, 151_936, 256
ROW = 2048
"""Tokens of a packed row, and of a padded batch of similar lengths."""

PREFIX, LEAF, LEAVES = 400, 100, 8
OLD_CHUNK = 1 << 27
TRL_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--head-tokens", type=int, default=8192)
    args = parser.parse_args()
    torch.set_num_threads(1)
    numbers: dict[str, float] = {}
    for measure in (rows, trees, head, gradients, trl):
        numbers |= measure(args)
        print(json.dumps(numbers), flush=True)
    for name, value in numbers.items():
        print(f"{name:20s} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2))


def model(device: str, *, attention: str | None = None, dtype: torch.dtype | None = None, **changes: Any) -> Any:
    """A random Qwen3 of 8.4 million weights; float32 on a CPU, bfloat16 on CUDA."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 768, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    transformers = import_transformers()
    config = transformers.Qwen3Config(**{"vocab_size": WORDS, **sizes, **heads, **changes})
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention or implementation(config), dtype=torch.float32
    )
    return made.train(False).to(device, dtype or (torch.bfloat16 if device == "cuda" else torch.float32))


def sample(tokens: np.ndarray, *, trained: int) -> Sample:
    mask = np.zeros(len(tokens), np.uint8)
    mask[len(tokens) - trained :] = 1
    return Sample(
        tokens=tokens.astype(np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        temperatures=np.ones(len(tokens), np.float32),
        weight_versions=np.where(mask == 1, 0, -1).astype(np.int32),
    )


def mix(count: int) -> list[Sample]:
    """Log-normal lengths of mean 300, two thirds of each trained."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(300) - 0.5, 1.0, count).astype(int), 16, 4096)
    return [sample(random.integers(0, WORDS, length), trained=length - length // 3) for length in lengths]


def family() -> list[Sample]:
    """Samples that share a prefix; only what follows it is trained."""
    random = np.random.default_rng(1)
    prefix = random.integers(0, WORDS, PREFIX)
    return [sample(np.concatenate([prefix, random.integers(0, WORDS, LEAF)]), trained=LEAF) for _ in range(LEAVES)]


def ours(
    policy: Policy,
    samples: Sequence[Sample],
    form: Form,
    *,
    micro_batches: int = 1,
    advantages: np.ndarray | None = None,
    of_tokens: Callable[[Packed, Tensor], Tensor] = lambda packed, new: -new,
) -> Callable[[], float]:
    """Loss of a step, backward included: the sum over tokens of share x loss."""
    device = next(policy.parameters()).device
    split = [list(part) for part in np.array_split(np.arange(len(samples)), micro_batches)]
    judged = np.ones(len(samples)) if advantages is None else advantages
    batch: Batch[Sample] = batch_of(samples, judged, steps=[split])
    shares = share_out(batch, Algorithm(), imitated=[0])

    def step() -> float:
        total = 0.0
        for part in split:
            for packed in forward_passes(batch, part, shares=shares, limit=ROW, form=form):
                placed = packed.to(device)
                loss = of_tokens(placed, policy(placed)[0]) @ placed.weights
                loss.backward()
                total += float(loss.detach())
        return total

    return step


def padded(made: Any, samples: Sequence[Sample], *, size: int = 8) -> Callable[[], float]:
    """The same by transformers alone: batches padded to their longest, logits of trained tokens only."""
    device = next(made.parameters()).device

    def step() -> float:
        total = 0.0
        for at in range(0, len(samples), size):
            part = samples[at : at + size]
            width = max(map(len, part))
            ids, mask, shares = (torch.zeros(len(part), width) for _ in range(3))
            for row, each in enumerate(part):
                ids[row, : len(each)] = torch.from_numpy(each.tokens.astype(np.float32))
                mask[row, : len(each)] = 1
                share = each.loss_mask / (each.trained_tokens * len(samples))
                shares[row, : len(each)] = torch.from_numpy(share.astype(np.float32))
            ids, mask, shares = ids.long().to(device), mask.long().to(device), shares.to(device)
            hidden = made.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
            kept = shares[:, 1:] > 0
            logits = made.get_output_embeddings()(hidden[kept]).float()
            loss = functional.cross_entropy(logits, ids[:, 1:][kept], reduction="none") @ shares[:, 1:][kept]
            loss.backward()
            total += float(loss.detach())
        return total

    return step


def fastest(steps: Mapping[str, Callable[[], float]], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each, alternated."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(args.repeats):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step, args.device))
    return best


def seconds(step: Callable[[], float], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def rows(args: argparse.Namespace) -> dict[str, float]:
    samples = mix(args.samples)
    policies = [Policy(model(args.device)), Policy(model(args.device, attention="sdpa"))]
    steps = {
        "packed": ours(policies[0], samples, Form.PACKED),
        "buckets": ours(policies[1], samples, Form.PADDED),
        "padded": padded(policies[1].model, samples),
    }
    took = fastest(steps, args)
    batch = batch_of(samples, np.ones(len(samples)))
    shares = share_out(batch, Algorithm(), imitated=[0])
    passes = forward_passes(batch, batch.steps[0][0], shares=shares, limit=ROW, form=Form.PACKED)
    computed, used = sum(each.tokens.numel() for each in passes), sum(int(each.places[-1]) for each in shares)
    return {
        "packed_vs_padded": took["padded"] / took["packed"],
        "packed_vs_buckets": took["buckets"] / took["packed"],
        "packed_tokens_per_second": sum(map(len, samples)) / took["packed"],
        "padding": 1 - used / computed,
    }


def trees(args: argparse.Namespace) -> dict[str, float]:
    samples, policy = family(), Policy(model(args.device))
    steps = {
        "tree": ours(policy, samples, Form.TREE),
        "one": ours(policy, samples, Form.PACKED, micro_batches=len(samples)),
    }
    took = fastest(steps, args)
    could = 1 - (PREFIX + LEAVES * LEAF) / (LEAVES * (PREFIX + LEAF))
    saved = 1 - took["tree"] / took["one"]
    return {"tree_speedup": took["one"] / took["tree"], "tree_share": saved / could}


def head(args: argparse.Namespace) -> dict[str, float]:
    """Each measurement in a process of its own, whose memory is its own too."""
    spawn = multiprocessing.get_context("spawn")
    told: dict[str, list[tuple[float, float]]] = {"new": [], "old": []}
    for _ in range(max(1, args.repeats - 1)):
        for name, seen in told.items():
            with spawn.Pool(1) as pool:
                seen.append(pool.apply(scored, (name, args.device, args.head_tokens)))
    (new, new_time), (old, old_time) = (tuple(map(min, zip(*told[name], strict=True))) for name in ("new", "old"))
    return {"head_peak_ratio": new / old, "head_time_ratio": new_time / old_time, "head_peak_mb": new / 1e6}


def scored(name: str, device: str, tokens: int) -> tuple[float, float]:
    """Bytes beyond inputs and gradients, and seconds, of scoring forward and backward."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
    weight = torch.randn(HEAD_WORDS, WIDTH, device=device).mul_(0.02).requires_grad_()
    targets, temperatures = torch.randint(HEAD_WORDS, (tokens,), device=device), torch.ones(tokens, device=device)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
    peak(device)
    before = held(device)

    def step() -> float:
        logprobs = (score if name == "new" else in_chunks)(hidden, weight, targets, temperatures)[0]
        logprobs.mean().backward()
        return 0.0

    took = seconds(step, device)
    return peak(device) - before, took


def held(device: str) -> float:
    """Bytes that this process holds."""
    if device == "cuda":
        return float(torch.cuda.memory_allocated())
    return float(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def peak(device: str) -> float:
    """Bytes that this process has held at most since it was last asked."""
    if device == "cuda":
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return float(most)
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024


def in_chunks(hidden: Tensor, weight: Tensor, targets: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a chunk at a time, each computed again in the backward pass."""

    def part(hidden: Tensor, targets: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        distribution = torch.log_softmax((hidden @ weight.T).float().div_(temperatures[:, None]), dim=-1)
        logprobs = -functional.nll_loss(distribution, targets, reduction="none")
        with torch.no_grad():
            entropy = -(distribution.exp() * distribution).sum(-1)
        return logprobs, entropy

    size = OLD_CHUNK // HEAD_WORDS
    pieces = zip(*(torch.split(each, size) for each in (hidden, targets, temperatures)), strict=True)
    done = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    return torch.cat([logprobs for logprobs, _ in done]), torch.cat([entropy for _, entropy in done])


def gradients(args: argparse.Namespace) -> dict[str, float]:
    del args
    worst = 0.0
    for samples, form in ((mix(6), Form.PACKED), (family(), Form.TREE)):
        made = model("cpu", dtype=torch.float32)
        plain = model("cpu", dtype=torch.float32, attention="sdpa")
        ours(Policy(made), samples, form)()
        padded(plain, samples, size=1)()
        for one, other in zip(made.parameters(), plain.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            worst = max(worst, float((one.grad - other.grad).norm() / other.grad.norm()))
    return {"grad_error_max": worst}


def trl(args: argparse.Namespace) -> dict[str, float]:
    """Nothing where TRL is not installed."""
    if not all(map(importlib.util.find_spec, ("trl", "datasets"))):
        print("trl and datasets are not installed: no trl_ratio")
        return {}
    samples, advantages = judged(mix(-(-args.samples // TRL_BATCH) * TRL_BATCH))
    policy = Policy(model(args.device))

    def clipped(packed: Packed, new: Tensor) -> Tensor:
        loss, _ = clipped_policy_loss((new - packed.rollout_logprobs), packed.advantages, eps_clip=0.2)
        return loss

    mine = ours(policy, samples, Form.PACKED, advantages=advantages, of_tokens=clipped)
    with tempfile.TemporaryDirectory() as folder:
        theirs = trl_step(model(args.device, attention="sdpa"), samples, advantages, folder, args.device)
        loss, known = mine(), theirs()
        took = fastest({"ours": mine, "theirs": theirs}, args)
    return {"trl_ratio": took["theirs"] / took["ours"], "trl_loss_error": abs(loss - known) / abs(known)}


def judged(samples: list[Sample]) -> tuple[list[Sample], np.ndarray]:
    """With old logprobs that are not quite a random model's, and an advantage each."""
    random = np.random.default_rng(2)
    told = []
    for each in samples:
        noise = random.normal(-np.log(WORDS), 0.3, len(each)).astype(np.float32)
        told.append(dataclasses.replace(each, logprobs=np.where(each.loss_mask == 1, noise, 0)))
    return told, random.normal(size=len(samples)).astype(np.float32)


def trl_step(
    made: Any, samples: Sequence[Sample], advantages: np.ndarray, folder: str, device: str
) -> Callable[[], float]:
    """The loss step of a GRPOTrainer, batch by batch: prompts padded on the left, completions on the right."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def nothing(completions: Sequence[str], **_: object) -> list[float | None]:
        return [0.0] * len(completions)

    words = Tokenizer(WordLevel({"<pad>": 0, "hello": 1}, unk_token="<pad>"))
    config = GRPOConfig(
        output_dir=folder,
        beta=0.0,
        loss_type="grpo",
        per_device_train_batch_size=TRL_BATCH,
        num_generations=TRL_BATCH,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=made,
        reward_funcs=nothing,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "hello"}] * TRL_BATCH),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>"),
    )
    trainer.current_gradient_accumulation_steps = 1
    batches = [
        trl_batch(samples[at : at + TRL_BATCH], advantages[at : at + TRL_BATCH], device)
        for at in range(0, len(samples), TRL_BATCH)
    ]

    def step() -> float:
        total = 0.0
        for inputs in batches:
            loss = trainer._compute_loss(trainer.model, inputs) / len(batches)
            loss.backward()
            total += float(loss.detach())
        return total

    return step


def trl_batch(samples: Sequence[Sample], advantages: np.ndarray, device: str) -> dict[str, Tensor]:
    """As GRPOTrainer generates and scores them."""
    prompts = [torch.from_numpy(each.tokens[: each.prompt_length].astype(np.int64)) for each in samples]
    replies = [torch.from_numpy(each.tokens[each.prompt_length :].astype(np.int64)) for each in samples]
    old = [torch.from_numpy(each.logprobs[each.prompt_length :]) for each in samples]
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = {
        "prompt_ids": pad(prompts, batch_first=True, padding_side="left"),
        "prompt_mask": pad([torch.ones_like(each) for each in prompts], batch_first=True, padding_side="left"),
        "completion_ids": pad(replies, batch_first=True),
        "completion_mask": pad([torch.ones_like(each) for each in replies], batch_first=True),
        "old_per_token_logps": pad(old, batch_first=True),
        "advantages": torch.from_numpy(advantages),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


if __name__ == "__main__":
    main()
