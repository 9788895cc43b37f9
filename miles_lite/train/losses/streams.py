"""What is known of each trained token when its loss is computed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from miles_lite.config.choices import Level
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.terms import log_ratio


@dataclass(frozen=True, kw_only=True)
class Streams:
    """N tokens, each stream float32 [N] but for `in_context`, bool [N]. Logprobs are natural.

    new               the policy's logprob, with gradient
    entropy           of the policy's distribution, in nats
    old               before the batch's first update, or the engine's with --use-rollout-logprobs
    reference         the reference model's; None without one
    teacher           the teacher's; None without one
    top               [N, K], the policy's logprobs of the tokens it is compared with the teacher on, with gradient
    top_teacher       [N, K], the teacher's
    rollout_logprobs  the engine's
    in_context        the engine sampled it behind these very tokens: its logprob may be compared
    advantages        of the token
    sequences         which sample it is of
    """

    new: Tensor
    entropy: Tensor
    old: Tensor
    reference: Tensor | None
    rollout_logprobs: Tensor
    in_context: Tensor
    advantages: Tensor
    sequences: Sequences
    teacher: Tensor | None = None
    top: Tensor | None = None
    top_teacher: Tensor | None = None

    @cached_property
    def logratio(self) -> Tensor:
        """log(new / old), clamped."""
        return log_ratio(self.new, self.old)

    @cached_property
    def sequence_logratio(self) -> Tensor:
        """The mean of `logratio` over the token's sample: of the geometric mean of its ratios."""
        return self.sequences.spread(self.sequences.mean(self.logratio))

    def logratio_of(self, level: Level) -> Tensor:
        """log(new / old) of the tokens, or of their sequences, normalised by their length."""
        return self.logratio if level is Level.TOKEN else self.sequence_logratio

    @property
    def comparable(self) -> Tensor:
        """The engine's logprob where it may be compared, elsewhere the old one: a ratio of 1."""
        return torch.where(self.in_context, self.rollout_logprobs, self.old)

    def at(self, chosen: Tensor) -> Streams:
        """Of the tokens that are chosen alone; bool [N]."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{n: t[chosen] for n, t in tensors.items()}, sequences=self.sequences.at(chosen))

    @classmethod
    def empty(cls, *, reference: bool, teacher: bool = False) -> Streams:
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
            sequences=Sequences(none.long(), 0),
            teacher=none if teacher else None,
        )
