"""PPO's critic: a value head on the hidden states that the policy's logits come from, and its loss.

Invariant: the head is trained, saved and sharded with the policy, and no engine ever sees it; at first it says 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from miles_lite.config.training import Algorithm
from miles_lite.train.packing import Packed
from miles_lite.train.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ValuedPolicy(Policy):
    """A policy that also says what each token's state is worth."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        width = int(model.get_output_embeddings().weight.shape[1])  # type: ignore[no-untyped-call]
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def scored(self, hidden: Tensor, packed: Packed, *, entropy_gradient: bool) -> tuple[Tensor, ...]:
        """Logprobs and entropies as the policy's, and float32 [P]: the value before each token."""
        value = self.value(hidden)[:, 0].float()
        return (*super().scored(hidden, packed, entropy_gradient=entropy_gradient), value)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, options: Algorithm) -> dict[str, Tensor]:
    """The squared error, clipped as PPO's code clips it: the larger one of the value and of the value within
    `value_clip` of its old one (Schulman et al., 2017; arXiv:2005.12729, section 3). All float32 [N]."""
    near = old + (values - old).clamp(-options.value_clip, options.value_clip)
    plain, clipped = (values - returns).square(), (near - returns).square()
    loss = torch.maximum(plain, clipped)
    return {
        "value_loss": loss,
        "value_clipfrac": (clipped > plain).to(loss.dtype),
        "loss": options.value_loss_coef * loss,
    }
