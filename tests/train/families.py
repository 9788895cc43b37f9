"""Tiny random models of the families that the trainer is held to, and what it is held to: the slow, obvious way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miles_lite.sample import Sample
from miles_lite.train.attention import implementation
from miles_lite.weights.compat import import_transformers

FAMILIES = ("qwen3", "qwen3_tied", "qwen3_moe", "llama", "gemma3")
VOCABULARY = 280
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", {}),
    "qwen3_tied": ("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "llama": ("LlamaConfig", {}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "moe_intermediate_size": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 8}),
}


def make_config(family: str, **changes: object) -> Any:
    kind, more = MORE[family]
    return getattr(import_transformers(), kind)(**(SIZE | more | changes))


def make_model(family: str, *, attention: str | None = None, **changes: object) -> Any:
    """In float32, seed 0; with the trainer's own attention unless told otherwise."""
    config = make_config(family, **changes)
    torch.manual_seed(0)
    model = import_transformers().AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention or implementation(config)
    )
    return model.eval()


def obvious_logprobs(model: torch.nn.Module, sample: Sample) -> Tensor:
    """transformers' own logits of one sample alone: the logprobs of its trained tokens, in order."""
    ids = torch.tensor(sample.tokens[None].astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1] / torch.tensor(sample.temperatures[1:, None])
    logprobs = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1)
    return logprobs[torch.tensor(sample.loss_mask[1:]) == 1]


def obvious_gradients(
    family: str, samples: Sequence[Sample], weights: Sequence[float]
) -> tuple[float, dict[str, Tensor]]:
    """Of Σ weight x logprob over the samples' trained tokens: its value, and all gradients, by sample alone."""
    model = make_model(family, attention="sdpa")
    total = 0.0
    for sample, weight in zip(samples, weights, strict=True):
        loss = weight * obvious_logprobs(model, sample).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative L2 distance of a parameter's gradient; those that are all rounding count by the largest."""
    assert set(got) == set(expected)
    largest = max(float(each.norm()) for each in expected.values())
    return max(
        float((got[name].double() - each.double()).norm() / max(float(each.norm()), 1e-6 * largest))
        for name, each in expected.items()
    )
