"""Routing replay (R3): the experts that the engine chose for a token, in the place of the trainer's own choice.

Routers of Hugging Face models choose by `torch.topk` over [tokens, experts]. While a router runs, that one call answers
the recorded experts and their current scores; the rest of the model's own formula (softmax or sigmoid, bias, groups,
normalisation) runs as it is written, so gradients reach the router. "Stabilizing MoE reinforcement learning by aligning
training and inference routers" (arXiv:2510.11370).

Invariant: `rows` are those of the pass that runs, from its forward pass to the end of its backward pass, so that layers
which are recomputed are routed alike. A token without a record gets the router's own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.train.loading import layers_of

ROUTER = "topkrouter"
"""How the names of router classes end."""

UNKNOWN, PADDING = -1, -2
"""In the place of experts: the engine returned none for the token; there is no token."""

COUNTS = ("routes_replayed", "routes_missing", "routes_differ")


class _Chosen(TorchFunctionMode):
    """Answers the choice of a router: int64 [tokens, k] of `experts`, -1 in a row that is not recorded."""

    def __init__(self, rows: Tensor, experts: int, *, perturbed: bool) -> None:
        super().__init__()
        self.rows, self.experts, self.perturbed = rows, experts, perturbed
        self.own: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        chooses = func in (torch.topk, Tensor.topk) and args[0].shape == (len(self.rows), self.experts)
        if not chooses or answer[1].shape != self.rows.shape:
            return answer
        self.own = func(-args[0], *args[1:], **kwargs)[1] if self.perturbed else answer[1]
        chosen = torch.where(self.rows < 0, self.own, self.rows)
        return torch.return_types.topk((args[0].gather(-1, chosen), chosen))


@dataclass(frozen=True, slots=True)
class Routing:
    """What samples must bring for a model: per token `k` experts in each of its decoder's `layers`, dense ones too.
    `strict`: a sample that brings nothing is refused."""

    layers: int
    k: int
    strict: bool = False

    def rows(self, sample: Sample, length: int) -> np.ndarray:
        """int16 [length, layers, k] of a sample's first tokens, UNKNOWN where it brings nothing. Raises UserError."""
        experts = sample.routed_experts
        if experts is None and self.strict:
            raise UserError(
                "--use-rollout-routing-replay strict: a sample has no routed experts. Start engines that return them "
                "(external ones: --enable-return-routed-experts), or leave strict out"
            )
        if experts is None:
            return np.full((length, self.layers, self.k), UNKNOWN, np.int16)
        if experts.shape[1:] != (self.layers, self.k):
            raise UserError(
                f"--use-rollout-routing-replay: engines report {experts.shape[2]} experts in {experts.shape[1]} "
                f"layers, but the trainer's model chooses {self.k} in {self.layers}: give both the same model"
            )
        return experts[:length].astype(np.int16)


@dataclass
class Replay:
    """Installed on a model, whose routers it leads.

    rows     int16 [B, T, layers, k] of the running pass, negative where nothing is recorded. None: every router chooses
             by itself
    own      by layer, what the router would have chosen in that pass, int16 [B x T, k]
    k        experts per token
    perturbed  routers choose those of the lowest scores
    """

    model: nn.Module
    rows: Tensor | None = None
    own: dict[int, Tensor] = field(default_factory=dict)
    k: int = 0
    perturbed: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a model without such routers."""
        for number, layer in enumerate(layers_of(self.model)):
            for router in layer.modules():
                if type(router).__name__.lower().endswith(ROUTER):
                    self.k = int(router.top_k)  # type: ignore[arg-type]
                    self._lead(router, number)
        if not self.k:
            raise UserError(
                f"--use-rollout-routing-replay: {type(self.model).__name__} has no router that chooses experts by "
                "torch.topk: leave the flag out"
            )

    def routing(self, *, strict: bool) -> Routing:
        return Routing(len(layers_of(self.model)), self.k, strict)

    def lead(self, rows: Tensor | None) -> None:
        """In the pass that comes, forward and backward."""
        self.rows = rows
        self.own.clear()

    def counts(self) -> dict[str, Tensor]:
        """Of the pass, by COUNTS: tokens with a record; tokens without; of the former, those that a router would have
        sent elsewhere, in any layer."""
        if self.rows is None:
            return {}
        rows = self.rows.flatten(0, 1)
        least = rows.flatten(1).amin(-1)
        differs = torch.zeros_like(least, dtype=torch.bool)
        for layer, own in self.own.items():
            differs |= (own.sort(-1).values != rows[:, layer].sort(-1).values).any(-1)
        sums = ((least >= 0).sum(), (least == UNKNOWN).sum(), (differs & (least >= 0)).sum())
        return dict(zip(COUNTS, sums, strict=True))

    def _lead(self, router: nn.Module, layer: int) -> None:
        """Put the recorded choice before the router's own."""
        chooses, weight = router.forward, router.weight
        assert isinstance(weight, Tensor)
        experts = len(weight)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.rows is None:
                return chooses(*args, **kwargs)
            mode = _Chosen(self.rows[:, :, layer].flatten(0, 1).long(), experts, perturbed=self.perturbed)
            with mode:
                output = chooses(*args, **kwargs)
            if mode.own is None:
                raise UserError(
                    f"--use-rollout-routing-replay: {type(router).__name__} does not choose {self.k} of {experts} "
                    "experts by torch.topk, so what engines chose cannot be replayed: leave the flag out"
                )
            self.own[layer] = mode.own.to(torch.int16)
            return output

        router.forward = forward


def check_overruled(replay: Replay, states: Callable[[Tensor], Tensor], *, tokens: int, device: torch.device) -> None:
    """Probe a model: routers that are made to choose otherwise change what it computes, but not where they are led.

    states(rows) is what the model makes of `tokens` tokens in one sequence, with rows as `Replay` has them. Collective
    where the model is spread over ranks. Raises UserError.
    """
    routing = replay.routing(strict=False)
    shape = (1, tokens, routing.layers, routing.k)
    free = torch.full(shape, UNKNOWN, dtype=torch.int16, device=device)
    told = torch.arange(routing.k, dtype=torch.int16, device=device).expand(shape)
    plain, led = states(free), states(told)
    replay.perturbed = True
    astray, again = states(free), states(told)
    replay.perturbed = False
    if torch.equal(astray, plain) or torch.equal(led, plain) or not torch.allclose(again, led, atol=1e-3, rtol=1e-3):
        raise UserError(
            f"--use-rollout-routing-replay: {type(replay.model).__name__} does not follow the experts it is told: "
            "leave the flag out"
        )
