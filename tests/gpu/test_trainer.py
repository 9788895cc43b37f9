"""The trainer on one GPU: attention's alignment, rows and trees against padded sequences, the head, FSDP2.

Needs torch, transformers and pytest alone, no Ray and no SGLang:

    PYTHONPATH=. python -m pytest -c /dev/null --confcutdir=tests/gpu tests/gpu/test_trainer.py
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from miles_lite.config.debugging import Debugging
from miles_lite.config.parallel import Parallelism
from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.sample import Sample
from miles_lite.train import mesh
from miles_lite.train.attention import implementation
from miles_lite.train.batching import batch_of
from miles_lite.train.data import Replicated, Sharded
from miles_lite.train.head import score
from miles_lite.train.learner import Learner
from miles_lite.train.packing import Form, forward_passes
from miles_lite.train.policy import Policy
from miles_lite.train.profiling import Recorder
from miles_lite.train.shares import share_out
from miles_lite.train.utilisation import peak_tflops
from miles_lite.weights.compat import import_transformers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA, HALF = torch.device("cuda"), torch.bfloat16
WORDS = 512


def model(attention: str | None = None) -> Any:
    transformers = import_transformers()
    config = transformers.Qwen3Config(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention or implementation(config), dtype=torch.float32
    )
    return made.train(False).to(CUDA, HALF)


def family(seed: int, lengths: Sequence[int], *, prefix: int) -> list[Sample]:
    """Samples behind one prefix, which is not trained."""
    random = np.random.default_rng(seed)
    shared, samples = random.integers(0, WORDS, prefix), []
    for length in lengths:
        tokens = np.concatenate([shared, random.integers(0, WORDS, length)]).astype(np.int32)
        mask = (np.arange(len(tokens)) >= max(1, prefix)).astype(np.uint8)
        ones, versions = np.ones(len(tokens), np.float32), np.where(mask == 1, 0, -1).astype(np.int32)
        samples.append(Sample(tokens, mask, -mask.astype(np.float32), ones, versions))
    return samples


def logprobs(policy: Policy, samples: list[Sample], form: Form) -> tuple[Tensor, Tensor]:
    """Of the trained tokens, by the length of their samples, which differ; and their mean's gradient, in one row."""
    batch = batch_of(samples, np.ones(len(samples)))
    shares = share_out(batch, Algorithm(), imitated=[0])
    policy.zero_grad()
    found: list[Tensor] = []
    passes = forward_passes(batch, batch.steps[0][0], shares=shares, limit=1 << 20, form=form)
    for packed in passes:
        placed = packed.to(CUDA)
        new, _ = policy(placed)
        (new @ placed.weights).backward()
        found += [new.detach()[placed.samples == number] for number in range(packed.sequences)]
    gradient = torch.cat([whole(each.grad).float().flatten() for each in policy.parameters() if each.grad is not None])
    return torch.cat(sorted(found, key=len)).float(), gradient


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def test_a_query_block_sees_its_keys_aligned_at_their_ends() -> None:
    """What layouts rely on: of queries behind earlier keys the last one sees all, the first all but those after it."""
    from torch.nn.attention.varlen import varlen_attn

    torch.manual_seed(0)
    queries, keys, values = (torch.randn(length, 2, 64, device=CUDA, dtype=HALF) for length in (3, 7, 7))
    bounds, ends = (torch.tensor([0, length], device=CUDA, dtype=torch.int32) for length in (3, 7))
    told: Any = varlen_attn(queries, keys, values, bounds, ends, 3, 7, window_size=(-1, 0))
    scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) / 8
    visible = torch.arange(7, device=CUDA)[None] <= torch.arange(4, 7, device=CUDA)[:, None]
    expected = torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), values.float())
    torch.testing.assert_close(told.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("form", "prefix"), [(Form.PACKED, 0), (Form.TREE, 90)])
def test_rows_and_trees_say_what_padded_sequences_say(form: Form, prefix: int) -> None:
    samples = family(1, (40, 7, 120, 33), prefix=prefix)
    rows, gradient = logprobs(Policy(model()), samples, form)
    padded, expected = logprobs(Policy(model("sdpa")), samples, Form.PADDED)
    assert (rows - padded).abs().mean() < 0.02  # bfloat16 of one beside bfloat16 of the other
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=0) > 0.999


def test_one_rank_that_shards_says_what_the_model_says(tmp_path: Path) -> None:
    samples = family(2, (40, 7, 120, 33), prefix=50)
    model().float().save_pretrained(tmp_path)
    store = mesh.open_store("127.0.0.1", ranks=1, timeout=60)
    mesh.join(store, rank=0, ranks=1, device=CUDA, host="127.0.0.1", timeout=60)
    try:
        sharded = Sharded(mesh.make_mesh(Parallelism(), device=CUDA), CUDA).load(tmp_path)
        found, gradient = logprobs(sharded, samples, Form.TREE)
    finally:
        torch.distributed.destroy_process_group()
    known, expected = logprobs(Policy(model()), samples, Form.TREE)
    assert (found - known).abs().mean() < 0.02
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=0) > 0.999


def test_scoring_holds_a_chunk_of_logits_whatever_the_number_of_tokens() -> None:
    words, width = 151_936, 256
    weight = torch.randn(words, width, device=CUDA, dtype=HALF).mul_(0.02).requires_grad_()
    peaks = []
    for tokens in (2048, 8192):
        hidden = torch.randn(tokens, width, device=CUDA, dtype=HALF, requires_grad=True)
        targets, ones = torch.randint(words, (tokens,), device=CUDA), torch.ones(tokens, device=CUDA)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        score(hidden, weight, targets, ones)[0].mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 8192 * words * 4 / 4


def test_a_step_is_measured_and_recorded(tmp_path: Path) -> None:
    options = Debugging(use_pytorch_profiler=True, record_memory_history=True, profile_step_start=0, profile_step_end=1)
    records = Recorder(options, rank=0, device=CUDA, folder=tmp_path)
    learner = Learner(Policy(model().float()), Replicated(), CUDA, Algorithm(), Optimizer(lr=1e-3))
    batch = batch_of(family(3, (40, 7, 120), prefix=50), [1.0, -1.0, 0.5])
    with records.step(0):
        metrics = learner.train(batch)
    assert 0 < metrics["perf/peak_memory_gb"] < 10
    assert metrics["perf/actor_train_tflops"] > 0
    if peak_tflops(CUDA) is not None:
        assert 0 < metrics["perf/actor_train_mfu"] < 1
    events = json.loads(gzip.decompress((tmp_path / "trace_rank_00000.json.gz").read_bytes()))["traceEvents"]
    assert "kernel" in {event.get("cat") for event in events}
    assert (tmp_path / "memory_rank_00000.pickle").stat().st_size > 1000
