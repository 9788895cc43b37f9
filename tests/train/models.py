"""Tiny models of several families, in folders of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from miles_lite.weights.compat import import_transformers

VOCABULARY = 288
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}
EXPERTS: dict[str, object] = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
SLIDING: dict[str, object] = {
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen3": ("Qwen3Config", {}),
    "qwen3-tied": ("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3MoeConfig", EXPERTS),
    "llama": ("LlamaConfig", {}),
    "gemma3": ("Gemma3TextConfig", {**SLIDING, "tie_word_embeddings": True}),
}


def write_model(kind: str, folder: Path) -> Path:
    """A model folder without a tokenizer, float32, weights drawn from one seed; biases and norms are not their
    initial ones and zeros, so that everything has a gradient of its own."""
    transformers = import_transformers()
    config, changes = FAMILIES[kind]
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**SHAPE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder
