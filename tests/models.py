"""A tiny random Qwen3, dense or with experts, with a byte-level BPE and a ChatML template: folders for tests.

Invariant: the same seed gives the same folder, and any text survives encode and decode. No torch is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
SPECIAL_TOKENS = CONTROL_TOKENS[:3]
"""The rest are plain added tokens, as in Qwen3: decoding with skip_special_tokens keeps them."""

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "float32",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": CONTROL_TOKENS.index("<|im_end|>"),
    "pad_token_id": CONTROL_TOKENS.index("<|endoftext|>"),
}

MOE_CONFIG: dict[str, Any] = CONFIG | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
}

CHAT_TEMPLATE = """
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
  {{- 'Tools:' }}
  {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
  {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
  {%- elif not (message.role == 'system' and loop.first) %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and message.reasoning_content %}
      {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
      {%- set function = call.function or call %}
      {%- if not loop.first or message.content %}{{- '\\n' }}{% endif %}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
      {{- function.arguments if function.arguments is string else function.arguments | tojson }}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def make_tiny_model(folder: Path | str, seed: int = 0) -> Path:
    """Write config, weights and tokenizer of a 140k-parameter Qwen3 (vocabulary 512) into `folder`; returns it."""
    make_tiny_tokenizer(folder)
    return make_tiny_weights(folder, seed)


def make_tiny_moe(folder: Path | str, seed: int = 0) -> Path:
    """The same with 8 experts per layer, of which 2 are chosen: a Qwen3-MoE."""
    make_tiny_tokenizer(folder)
    return make_tiny_weights(folder, seed, MOE_CONFIG)


def make_tiny_tokenizer(folder: Path | str) -> Path:
    """Write the tokenizer alone: no torch needed."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = ["hello world, how are you today?", "the quick brown fox jumps over the lazy dog", "system user assistant"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus * 20, trainer)
    bpe.add_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS[len(SPECIAL_TOKENS) :]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE.strip(),
    )
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_tiny_weights(folder: Path | str, seed: int, config: Mapping[str, Any] = CONFIG) -> Path:
    """Write config.json and random float32 weights; their wide range gives distributions far from uniform."""
    random = np.random.default_rng(seed)
    weights = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in _shapes(config).items()
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    Path(folder, "config.json").write_text(json.dumps(config, indent=2))
    return Path(folder)


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, head, vocabulary = 64, 16, 512
    queries, keys = 4 * head, 2 * head
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        **_mlp_shapes(config),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,)}
    shapes["lm_head"] = (vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _mlp_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, experts = 64, config.get("moe_intermediate_size", 128), config.get("num_experts")
    one = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    if experts is None:
        return {f"mlp.{name}": shape for name, shape in one.items()}
    each = {f"mlp.experts.{index}.{name}": shape for index in range(experts) for name, shape in one.items()}
    return {"mlp.gate": (experts, hidden), **each}


def reference_logprobs(folder: Path | str, tokens: list[int], *, temperature: float = 1.0) -> np.ndarray:
    """transformers' log-probability of each token but the first, given those before: float32 [len(tokens) - 1]."""
    import torch

    from miles_lite.weights.compat import import_transformers

    model = import_transformers().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1] / temperature, dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()
