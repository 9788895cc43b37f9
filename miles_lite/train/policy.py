"""A Hugging Face causal model as a function of packed tokens to their logprobs.

Invariant: the model itself is untouched (any `AutoModelForCausalLM`); logits exist only for trained tokens, and of
those only one chunk at a time. A logprob is of the distribution the token was sampled from: log_softmax(logits / T).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from miles_lite.train.attention import NAME, Segments, unpackable
from miles_lite.train.packing import Form, Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CHUNK_ELEMENTS = 1 << 27
"""Logits held at once (float32): 512 MB."""


class Policy(nn.Module):
    """Logprobs and entropies of the trained tokens of one forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[no-untyped-call]

    def weights(self) -> dict[str, Tensor]:
        """The model's state under its own names; sharded where the policy is."""
        own = "model."
        return {name.removeprefix(own): each for name, each in self.state_dict().items() if name.startswith(own)}

    @property
    def unpackable(self) -> str | None:
        """Why sequences cannot share a row (see `attention.unpackable`); None where they can."""
        chosen = self.model.config._attn_implementation
        return unpackable(self.model.config) or (None if chosen == NAME else f"its attention is {chosen}")

    def forward(self, packed: Packed, *, entropy_gradient: bool = False) -> tuple[Tensor, ...]:
        """Two float32 [N]: log p(token) and the entropy of its distribution in nats, the latter without gradient
        unless `entropy_gradient`."""
        return self.scored(self.hidden(packed), packed, entropy_gradient=entropy_gradient)

    def scored(self, hidden: Tensor, packed: Packed, *, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        """What `forward` gives, of the states."""
        size = max(1, CHUNK_ELEMENTS // self.vocab_size)
        aligned = (hidden, packed.targets, packed.temperatures)
        if len(hidden) <= size:
            logprobs, entropy = self.score(*aligned, entropy_gradient)
        else:
            pieces = zip(*(torch.split(each, size) for each in aligned), strict=True)
            scored = [checkpoint(self.score, *piece, entropy_gradient, use_reentrant=False) for piece in pieces]
            logprobs, entropy = (torch.cat(each) for each in zip(*scored, strict=True))
        return logprobs[packed.copies], entropy[packed.copies]

    def hidden(self, packed: Packed) -> Tensor:
        """[P, width]: the states that are scored."""
        row: dict[str, object] = {}
        if packed.layout is not None:
            row = {"position_ids": packed.positions, "segments": Segments(packed.layout, packed.tokens.device)}
        output = self.model.base_model(input_ids=packed.tokens, use_cache=False, **row)
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[packed.states]

    def score(
        self, hidden: Tensor, targets: Tensor, temperatures: Tensor, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """The same of N hidden states [N, width] that predict `targets`, int64 [N]; logits and softmax are float32."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits = head(hidden).float() / temperatures[:, None]
        distribution = torch.log_softmax(logits, dim=-1)
        logprobs = -functional.nll_loss(distribution, targets, reduction="none")
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = -(distribution.exp() * distribution).sum(-1)
        return logprobs, entropy


def choose_form(policies: Sequence[Policy]) -> Form:
    """How samples share the forward passes of models that see the same rows; says so when they cannot share any."""
    for policy in policies:
        if policy.unpackable is not None:
            log.warning("one sequence per row, padded: %s: %s", policy.model.config.model_type, policy.unpackable)
            return Form.PADDED
    return Form.PACKED
