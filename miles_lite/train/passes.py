"""A forward pass, and what is known of its tokens before the first update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.streams import Streams
from miles_lite.train.packing import Packed


@dataclass
class Pass:
    """One pass; what models say of its N tokens, float32 [N], None where nobody asked them.

    old         the policy's logprobs; None where the pass itself tells them
    reference   the reference model's
    teacher     the teacher's
    top_ids     int64 [N, K], the tokens that policy and teacher are compared on, besides the sampled ones
    top_teacher  float32 [N, K], the teacher's logprobs of those
    values      the value head's
    advantages  of tokens; None where the pass itself must tell the old logprobs first
    returns     what the value head learns
    """

    packed: Packed
    old: Tensor | None = None
    reference: Tensor | None = None
    teacher: Tensor | None = None
    top_ids: Tensor | None = None
    top_teacher: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def sequences(self) -> Sequences:
        """Which sample each token is of."""
        return Sequences(self.packed.samples, self.packed.sequences)

    def old_logprobs(self, new: Tensor, options: Algorithm) -> Tensor:
        """Those that ratios compare with, [N], without gradient; `new` is what the pass says now."""
        now, packed = new.detach(), self.packed
        if options.use_rollout_logprobs:
            return torch.where(packed.in_context, packed.rollout_logprobs, now)
        if options.use_approximate_old_logprobs:
            sampled = torch.where(packed.in_context, packed.rollout_logprobs, now)
            return approximate(sampled, now, packed.staleness)
        return now if self.old is None else self.old

    @property
    def scored(self) -> Packed:
        """What the policy is asked to score."""
        return self.packed if self.top_ids is None else self.packed.scoring(self.top_ids)

    def streams(self, new: Tensor, entropy: Tensor, old: Tensor, top: Tensor | None) -> Streams:
        """Of all its tokens; the advantages are the group estimator's where no others are known."""
        packed = self.packed
        return Streams(
            new=new,
            entropy=entropy,
            old=old,
            reference=self.reference,
            teacher=self.teacher,
            top=top,
            top_teacher=self.top_teacher,
            rollout_logprobs=packed.rollout_logprobs,
            in_context=packed.in_context,
            advantages=packed.advantages if self.advantages is None else self.advantages,
            sequences=self.sequences,
        )


def approximate(sampled: Tensor, now: Tensor, staleness: Tensor) -> Tensor:
    """Old logprobs on the line between those the tokens were sampled with and the current ones (A-3PO,
    arXiv:2512.06547): one step behind the current ones of `staleness` steps; all float32 [N].
    """
    behind = 1 / staleness.clamp_min(1.0)
    return torch.where(staleness > 0, behind * sampled + (1 - behind) * now, now)
