"""A small Qwen3-architecture model with a tokenizer of its own, from nothing but a text corpus.

Invariant: nothing is downloaded; the same arguments give the same folder; any text survives encoding and decoding;
every id the model can sample is a token. The chat template renders each message by itself, so appending messages never
changes what came before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from miles_lite.errors import UserError
from miles_lite.weights.compat import import_transformers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Control tokens that stay visible when special tokens are skipped: parsers look for them in the text (as in Qwen3)."""

CHAT_TEMPLATE = """
{%- macro turn(role, content) %}{{- '<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n' }}{% endmacro %}
{%- set first_is_system = messages and messages[0].role == 'system' %}
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if first_is_system %}{{- messages[0].content + '\\n\\n' }}{% endif %}
  {{- 'Call a tool with <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>. Tools:' }}
  {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
  {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'assistant' %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
      {%- set function = call.function or call %}
      {%- if not loop.first or message.content %}{{- '\\n' }}{% endif %}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
      {{- function.arguments if function.arguments is string else function.arguments | tojson }}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {{- turn('user', '<tool_response>\\n' + message.content + '\\n</tool_response>') }}
  {%- elif not (tools and loop.first and first_is_system) %}
    {{- turn(message.role, message.content) }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def init_model(
    out: Path | str,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 256,
    vocab_size: int = 768,
    context: int = 2048,
    seed: int = 1234,
    experts: int = 0,
    experts_per_token: int = 2,
    expert_intermediate: int = 128,
    corpus: Iterable[str],
) -> int:
    """Write model, tokenizer, template and generation config into the folder `out`; the number of parameters.

    `vocab_size` is an upper bound: the tokenizer stops early when the corpus has nothing left to merge, and the model
    gets exactly the tokenizer's size. Weights are float32. With `experts` it is a Qwen3-MoE, whose embeddings are not
    tied: no engine serves one whose are. Raises UserError on impossible sizes.
    """
    if hidden % heads or heads % kv_heads or (hidden // heads) % 2:
        raise UserError(
            f"init-model: hidden {hidden} must be a multiple of heads {heads}, with an even quotient, and heads a "
            f"multiple of kv_heads {kv_heads}"
        )
    if 0 < experts < experts_per_token:
        raise UserError(f"init-model: of {experts} experts {experts_per_token} cannot take a token")
    tokenizer = train_tokenizer(corpus, vocab_size=vocab_size, context=context)
    transformers = import_transformers()
    stops = [tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]
    more: dict[str, int | bool] = {}
    if experts:
        more = {"num_experts": experts, "num_experts_per_tok": experts_per_token, "norm_topk_prob": True}
        more |= {"moe_intermediate_size": expert_intermediate}
    kind = transformers.Qwen3MoeConfig if experts else transformers.Qwen3Config
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=context,
        initializer_range=hidden**-0.5 / 2,
        tie_word_embeddings=not experts,
        bos_token_id=None,
        eos_token_id=stops[0],
        pad_token_id=stops[1],
        dtype="float32",
        **more,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = stops
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int, context: int) -> Any:
    """A byte-level BPE of at most `vocab_size` tokens, control tokens included, as a transformers fast tokenizer."""
    smallest = len(SPECIAL_TOKENS) + 256 + len(MARKUP_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"init-model: vocab_size {vocab_size} is too small, bytes and control tokens are {smallest}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=vocab_size - len(MARKUP_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token in MARKUP_TOKENS])
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE.strip(),
        model_max_length=context,
    )
