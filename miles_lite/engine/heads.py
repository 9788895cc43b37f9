"""Models that SGLang reads with a head of their own, although their config says that the embedding is the head.

Invariant: read from SGLang's sources, none of these looks at `tie_word_embeddings`; weights that are tied have no head
to send, so engines would sample from another model than the one that is trained.
"""

from __future__ import annotations

from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.model_folder import text_config

UNTIED = frozenset({"glm4_moe", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next"})
"""By `model_type`."""


def check_head(folder: Path) -> None:
    """Raises UserError for a folder that such a model cannot be served from."""
    config = text_config(folder)
    kind = config.get("model_type")
    if kind in UNTIED and config.get("tie_word_embeddings"):
        raise UserError(
            f"{folder}/config.json: tie_word_embeddings is true, and SGLang reads a {kind} with a head of its own, so "
            "that engines would not sample from the model that is trained. Save the model with tie_word_embeddings "
            "false and an lm_head.weight, at first a copy of model.embed_tokens.weight"
        )
