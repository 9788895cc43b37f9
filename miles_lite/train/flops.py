"""Floating-point operations of training on tokens, from a model's config: what balances ranks, and tells how busy they
were.

6 x weights per token, forward and backward ("Scaling laws for neural language models", arXiv:2001.08361, section 2.1),
of the weights that a token passes; and 12 x layers x width of attention per pair of a query and a key that it sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.process.json_types import JsonMapping

NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class Flops:
    """Of training on one token, and on one pair."""

    per_token: float
    per_pair: float

    def of(self, tokens: int, pairs: int) -> float:
        return self.per_token * tokens + self.per_pair * pairs


def flops(config: JsonMapping) -> Flops:
    """By the names of a text model's config.json; attention that compresses its keys counts as if it did not. A config
    of other names says nothing: then what counts are tokens."""
    if not describes_model(config):
        return Flops(per_token=1.0, per_pair=0.0)
    hidden, layers, heads, vocabulary = (int(config[name]) for name in NAMES)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    attention = hidden * size * 2 * (heads + kv_heads)
    weights = layers * (attention + 3 * hidden * _inner(config)) + hidden * vocabulary
    return Flops(per_token=6.0 * weights, per_pair=12.0 * layers * heads * size)


def describes_model(config: JsonMapping) -> bool:
    """Whether a config has the names that `flops` knows."""
    return all(name in config for name in NAMES)


def head_flops(config: JsonMapping) -> float:
    """Of a token's `per_token`, those of the head: a token that is not scored goes without."""
    return 6.0 * int(config["hidden_size"]) * int(config["vocab_size"])


def _inner(config: JsonMapping) -> int:
    """Width of the hidden layer that a token passes: of all the experts that it is routed to."""
    chosen = config.get("num_experts_per_tok")
    if not chosen:
        return int(config.get("intermediate_size") or 4 * config["hidden_size"])
    each = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    shared = int(config.get("shared_expert_intermediate_size") or each * int(config.get("n_shared_experts") or 0))
    return int(chosen) * each + shared
