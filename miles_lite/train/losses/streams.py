"""What is known of each trained token when its loss is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from miles_lite.train.losses.terms import log_ratio


@dataclass(frozen=True, kw_only=True)
class Streams:
    """N tokens, each stream float32 [N] but for `in_context`, bool [N]. Logprobs are natural.

    new               the policy's logprob, with gradient
    entropy           of the policy's distribution, in nats
    old               before the batch's first update, or the engine's with --use-rollout-logprobs
    reference         the reference model's; None without one
    rollout_logprobs  the engine's
    in_context        the engine sampled it behind these very tokens: its logprob may be compared
    advantages        of the token's rollout
    """

    new: Tensor
    entropy: Tensor
    old: Tensor
    reference: Tensor | None
    rollout_logprobs: Tensor
    in_context: Tensor
    advantages: Tensor

    @cached_property
    def logratio(self) -> Tensor:
        """log(new / old), clamped."""
        return log_ratio(self.new, self.old)

    @classmethod
    def empty(cls, *, reference: bool) -> Streams:
        """Of no tokens."""
        none = torch.zeros(0)
        return cls(
            new=none,
            entropy=none,
            old=none,
            reference=none if reference else None,
            rollout_logprobs=none,
            in_context=none.bool(),
            advantages=none,
        )
