"""What a step reports of its work: tokens that were computed and padded, FLOPs, memory, and where its time went."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miles_lite.sample import NOT_SAMPLED
from miles_lite.train import utilisation
from miles_lite.train.building import build_learner
from miles_lite.train.flops import flops
from miles_lite.train.packing import Form, forward_passes
from miles_lite.train.utilisation import Meter, peak_tflops
from tests.train.families import make_model
from tests.train.helpers import joined, make_batch, make_config, make_samples, shares_of

CPU = torch.device("cpu")


def branches() -> list[Any]:
    """Two that share more than a prompt, and one beside them."""
    trunk, other, stranger = make_samples(8, 3)
    return [trunk, joined(trunk, other, at=trunk.prompt_length + 1), stranger]


@pytest.mark.parametrize("form", Form)
def test_tokens_pairs_and_padding_are_counted_as_they_are_computed(form: Form) -> None:
    batch = make_batch(branches(), [1.0] * 3)
    passes = forward_passes(batch, range(3), shares=shares_of(batch), limit=10**6, form=form)
    inputs = [int(shares.places[-1]) for shares in shares_of(batch)]
    shared = batch.samples[0].prompt_length + 1
    distinct = sum(inputs) - (shared if form is Form.TREE else 0)
    alone = sum(n * (n + 1) // 2 for n in inputs) - (shared * (shared + 1) // 2 if form is Form.TREE else 0)
    assert sum(each.seen for each in passes) == sum(inputs)
    assert sum(each.distinct for each in passes) == distinct
    assert sum(each.pairs for each in passes) == alone
    work = Meter(make_model("qwen3"), CPU, tile=1).work(passes)
    computed = sum(each.tokens.numel() for each in passes)
    assert work["positions"] == computed >= distinct
    assert (computed > distinct) == (form is Form.PADDED)
    padded = Meter(make_model("qwen3"), CPU, tile=64).work(passes)["positions"]
    assert padded % 64 == 0
    assert padded > computed


@pytest.mark.parametrize("form", Form)
def test_what_follows_the_last_trained_token_is_neither_computed_nor_saved(form: Form) -> None:
    samples = branches()
    told: dict[str, Any] = {"loss_mask": 0, "logprobs": 0, "temperatures": 1, "weight_versions": NOT_SAMPLED}
    works = []
    for length in (0, 40):
        longer = [
            dataclasses.replace(
                sample,
                tokens=np.r_[sample.tokens, np.arange(length, dtype=np.int32)],
                **{name: np.pad(getattr(sample, name), (0, length), constant_values=v) for name, v in told.items()},
            )
            for sample in samples
        ]
        batch = make_batch(longer, [1.0] * 3)
        passes = forward_passes(batch, range(3), shares=shares_of(batch), limit=10**6, form=form)
        works.append(Meter(make_model("qwen3"), CPU, tile=1).work(passes))
    assert works[0] == works[1]
    shared = samples[0].prompt_length + 1 if form is Form.TREE else 0
    assert works[1]["seen"] - works[1]["distinct"] == shared


def test_operations_are_those_of_the_weights_that_tokens_pass() -> None:
    """Of a dense model whose every token is scored: 6 per weight but the embedding's, 12 per layer, width and pair."""
    model = make_model("llama")
    batch = make_batch(make_samples(3, 1), [1.0])
    (packed,) = forward_passes(batch, [0], shares=shares_of(batch), limit=10**6, form=Form.PACKED)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "head" not in name]
    head = model.lm_head.weight.numel()
    expected = 6.0 * (sum(map(torch.numel, matrices)) * packed.distinct + head * len(packed.targets))
    expected += 12.0 * 3 * 32 * packed.pairs
    assert Meter(model, CPU, tile=1).work([packed])["flops"] == pytest.approx(expected)
    assert flops(model.config.to_dict()).of(packed.distinct, packed.pairs) > expected


def test_a_model_whose_config_does_not_tell_has_no_operations() -> None:
    model = make_model("llama")
    config = model.config.to_dict()
    model.config.to_dict = lambda: {name: value for name, value in config.items() if name != "hidden_size"}
    totals = dict.fromkeys(utilisation.SUMS, 1.0)
    assert "perf/actor_train_tflops" not in Meter(model, CPU, tile=1).report(totals, seconds=1.0, memory=0.0)


def test_peaks_are_those_of_known_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_tflops(CPU) is None
    names = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756.0, "NVIDIA L40S": 362.0, "NVIDIA GB200": 2500.0}
    names |= {"NVIDIA H200": 989.4, "NVIDIA H20": 148.0, "NVIDIA A100-SXM4-80GB": 312.0}
    for name, peak in {**names, "Tesla K80": None}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_tflops(torch.device("cuda")) == peak


@pytest.mark.usefixtures("process_group")
def test_a_step_says_where_its_time_and_memory_went(model_dir: Path) -> None:
    batch = make_batch(branches() * 2, [1.0, -1.0, 0.5] * 2, steps=[[[0, 1, 2]], [[3, 4, 5]]])
    metrics = build_learner(make_config(model_dir, "--use-kl-loss"), device=CPU).train(batch)
    times = {name: value for name, value in metrics.items() if name.endswith("_time")}
    assert min(times.values()) > 0
    assert "perf/teacher_log_probs_time" not in times
    parts = times["perf/forward_backward_time"] + times["perf/optimizer_time"]
    assert parts <= times["perf/actor_train_time"]
    tokens = sum(map(len, batch.samples))
    rate = pytest.approx(tokens / times["perf/actor_train_time"])
    assert metrics["perf/actor_train_tok_per_s"] == metrics["perf/actor_train_tok_per_s_per_rank"] == rate
    assert metrics["perf/padding_ratio"] == 0
    shared = batch.samples[0].prompt_length + 1
    seen = sum(int(shares.places[-1]) for shares in shares_of(batch))
    assert metrics["perf/tree_savings_ratio"] == pytest.approx(2 * shared / seen)
    assert metrics["perf/actor_train_tflops"] > 0
    assert not any("mfu" in name for name in metrics)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.5 * most <= metrics["perf/peak_memory_gb"] <= most
    alone = build_learner(make_config(model_dir, "--disable-tree-training"), device=CPU).train(batch)
    assert alone["perf/tree_savings_ratio"] == 0
    assert alone["train/loss"] == pytest.approx(metrics["train/pg_loss"], abs=1e-6)
