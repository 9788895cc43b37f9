"""A Hugging Face causal model as a function of packed tokens to their logprobs.

Invariant: the model itself is untouched (any `AutoModelForCausalLM`); logits exist only for trained tokens, and of
those only one chunk at a time. A logprob is of the distribution the token was sampled from: log_softmax(logits / T).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from miles_lite.train.packing import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        return {name.removeprefix("model."): tensor for name, tensor in self.state_dict().items()}

    def forward(self, packed: Packed, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Two float32 [N]: log p(token) and the entropy of its distribution in nats, the latter without gradient
        unless `entropy_gradient`."""
        hidden = self.model.base_model(input_ids=packed.tokens, use_cache=False).last_hidden_state
        hidden = hidden[packed.rows, packed.columns]
        size = max(1, CHUNK_ELEMENTS // self.vocab_size)
        if len(hidden) <= size:
            return self.score(hidden, packed.targets, packed.temperatures, entropy_gradient)
        aligned = (hidden, packed.targets, packed.temperatures)
        pieces = zip(*(torch.split(each, size) for each in aligned), strict=True)
        scored = [checkpoint(self.score, *piece, entropy_gradient, use_reentrant=False) for piece in pieces]
        return torch.cat([logprobs for logprobs, _ in scored]), torch.cat([entropy for _, entropy in scored])

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
