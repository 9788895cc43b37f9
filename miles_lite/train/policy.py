"""A Hugging Face causal model as a function of packed tokens to their logprobs.

Invariant: the model itself is untouched (any `AutoModelForCausalLM`); its head is applied only to what predicts trained
tokens, by `head.score`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from miles_lite.errors import UserError
from miles_lite.train.attention import Segments, implementation, read_config, unpackable
from miles_lite.train.head import score
from miles_lite.train.packing import Form, Packed
from miles_lite.weights.compat import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class Policy(nn.Module):
    """Logprobs and entropies of the trained tokens of one forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def weights(self) -> dict[str, Tensor]:
        """The model's state under its own names; sharded where the policy is."""
        return {name.removeprefix("model."): tensor for name, tensor in self.state_dict().items()}

    @property
    def unpackable(self) -> str | None:
        """Why sequences cannot share a row (see `attention.unpackable`); None where they can."""
        return unpackable(self.model.config)

    def forward(self, packed: Packed, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Two float32 [N]: log p(token) and the entropy of its distribution in nats, the latter without gradient
        unless `entropy_gradient`."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logprobs, entropy = score(
            self.hidden(packed),
            head.weight,
            packed.targets,
            packed.temperatures,
            bias=getattr(head, "bias", None),
            entropy_gradient=entropy_gradient,
        )
        return logprobs[packed.copies], entropy[packed.copies]

    def hidden(self, packed: Packed) -> Tensor:
        """[P, width]: the states that are scored."""
        row: dict[str, object] = {}
        if packed.layout is not None:
            row = {"position_ids": packed.positions, "segments": Segments(packed.layout, packed.tokens.device)}
        output = self.model.base_model(input_ids=packed.tokens, use_cache=False, **row)
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[packed.states]


def choose_form(policies: Sequence[Policy], *, trees: bool) -> Form:
    """How samples share the forward passes of models that see the same rows; says so when they cannot share any."""
    for policy in policies:
        if policy.unpackable is not None:
            log.warning("one sequence per row, padded: %s: %s", policy.model.config.model_type, policy.unpackable)
            return Form.PADDED
    return Form.TREE if trees else Form.PACKED


def load_model(folder: str | Path) -> PreTrainedModel:
    """The causal model of a Hugging Face folder, float32, on the CPU. Raises UserError when there is none."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"no model in {folder}: expected a Hugging Face folder with config.json and weights")
    attention = implementation(read_config(folder))
    model: PreTrainedModel = import_transformers().AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )
    config = model.config.get_text_config()
    for name in LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1.0):
            raise UserError(f"{folder}: config.json sets {name}; models that transform their logits are not supported")
    return model
