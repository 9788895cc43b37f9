"""A Hugging Face causal model as a function of packed tokens to their logprobs.

Invariant: the model itself is untouched (any `AutoModelForCausalLM`); its head is applied only to what predicts trained
tokens, by `head.score`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from miles_lite.config.choices import RoutingReplay
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.train.attention import NAME, Segments, unpackable
from miles_lite.train.batching import batch_of
from miles_lite.train.context import Context
from miles_lite.train.head import WHOLE, Vocabulary, score
from miles_lite.train.head import likeliest as likeliest_of
from miles_lite.train.packing import Form, Packed, bare_pass
from miles_lite.train.routing_replay import Replay, Routing, check_overruled
from miles_lite.weights.compat import attention_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

PROBED = 8
"""Tokens on which a model shows that it follows recorded routes."""


class Policy(nn.Module):
    """Logprobs and entropies of the trained tokens of one forward pass."""

    context: Context | None = None
    """The ranks that share the tokens of a pass, if any do."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.replay: Replay | None = None

    @property
    def tile(self) -> int:
        """A pass's tokens are padded to a multiple of it, so that its ranks have as many each."""
        return 1 if self.context is None else self.context.tile

    def weights(self) -> dict[str, Tensor]:
        """The model's state under its own names; sharded where the policy is."""
        own = "model."
        return {name.removeprefix(own): each for name, each in self.state_dict().items() if name.startswith(own)}

    @property
    def unpackable(self) -> str | None:
        """Why sequences cannot share a row (see `attention.unpackable`); None where they can."""
        computed = attention_name(self.model)
        why = unpackable(self.model.config)
        return why or (None if computed == NAME else f"--attn-implementation {computed} computes sequence by sequence")

    def forward(self, packed: Packed, *, entropy_gradient: bool = False, likeliest: int = 0) -> tuple[Tensor, ...]:
        """Two float32 [N]: log p(token) and the entropy of its distribution in nats, the latter without gradient
        unless `entropy_gradient`. Or, where `likeliest` tokens are asked for, so many int64 [N]: those that are most
        likely in the place of each."""
        scored = partial(self.scored, entropy_gradient=entropy_gradient)
        ask = partial(self.top, count=likeliest) if likeliest else scored
        if self.context is None:
            scores = ask(self.hidden(packed), packed)
        else:
            part, pairs = self.context.share(packed)
            own = ask(self.hidden(part), part)
            scores = self.context.whole(own, pairs, count=len(packed.targets))
        return tuple(each[packed.copies] for each in scores)

    def top(self, hidden: Tensor, packed: Packed, *, count: int) -> tuple[Tensor, ...]:
        """The likeliest tokens, int64 [P] each."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        weight, vocabulary = own_rows(head.weight)
        assert vocabulary.group is None, "who looks for tokens knows all of them"
        bias = getattr(head, "bias", None)
        return likeliest_of(hidden, weight, packed.temperatures, count=count, bias=bias).unbind(1)

    def scored(self, hidden: Tensor, packed: Packed, *, entropy_gradient: bool) -> tuple[Tensor, ...]:
        """Logprobs and entropies of the P pairs whose states are given."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        weight, vocabulary = own_rows(head.weight)
        return score(
            hidden,
            weight,
            packed.targets,
            packed.temperatures,
            bias=getattr(head, "bias", None),
            entropy_gradient=entropy_gradient,
            vocabulary=vocabulary,
        )

    def hidden(self, packed: Packed) -> Tensor:
        """[P, width]: the states that are scored."""
        if self.replay is not None:
            self.replay.lead(packed.experts)
        row: dict[str, object] = {}
        segments = None
        if packed.layout is not None:
            gather = self.context.gather if self.context else None
            segments = Segments(packed.layout, packed.tokens.device, gather)
            row = {"position_ids": packed.positions, "segments": segments}
        output = self.model.base_model(input_ids=packed.tokens, use_cache=False, **row)
        if segments is not None and not segments.reached:
            raise UserError(
                f"{self.model.config.model_type} does not tell its attention how rows are packed: give "
                "--attn-implementation sdpa, which runs one sequence per row"
            )
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1)[packed.states]

    def routes(self) -> dict[str, Tensor]:
        """Of the pass that ran, by `replay.COUNTS`, on all ranks of its context; {} where no routes are replayed."""
        counts = {} if self.replay is None else self.replay.counts()
        return counts if self.context is None else self.context.summed(counts)


def own_rows(weight: Tensor) -> tuple[Tensor, Vocabulary]:
    """Those of a head's weight that this rank has, and which they are."""
    if not isinstance(weight, DTensor):
        return weight, WHOLE
    ranks = weight.device_mesh
    most = -(-len(weight) // ranks.size())
    return weight.to_local(), Vocabulary(most * ranks.get_local_rank(), most, ranks.get_group())


def replayed(policy: Policy, device: torch.device, options: Algorithm) -> Routing | None:
    """What samples must bring if their routes are to be replayed, which this makes the policy do. Collective.

    Raises UserError for a model that does not do it.
    """
    if options.use_rollout_routing_replay is RoutingReplay.OFF:
        return None
    policy.replay = replay = Replay(policy.model)
    bare = bare_pass(batch_of([], []), PROBED).to(device)

    def states(rows: Tensor) -> Tensor:
        with torch.no_grad():
            logprobs: Tensor = policy(replace(bare, experts=rows))[0]
        return logprobs

    check_overruled(replay, states, tokens=PROBED, device=device)
    return replay.routing(strict=options.use_rollout_routing_replay is RoutingReplay.STRICT)


def choose_form(policies: Sequence[Policy], *, trees: bool) -> Form:
    """How samples share the forward passes of models that see the same rows; says so when they cannot share any."""
    for policy in policies:
        if policy.unpackable is not None:
            log.warning("one sequence per row, padded: %s: %s", policy.model.config.model_type, policy.unpackable)
            return Form.PADDED
    return Form.TREE if trees else Form.PACKED
