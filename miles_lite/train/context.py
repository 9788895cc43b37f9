"""Context parallelism: the ranks of a group share the tokens of a row, forward and backward.

Each rank computes its stretches of the row (`layout.shares`, zig-zag) with the keys and values of all, as in Llama 3
(arXiv:2407.21783, section 3.3.2), and scores what its own hidden states predict. Then the scores, one number per token,
are made whole on every rank.

Invariant: what follows sees a pass as one rank would, so that losses, also those of whole sequences, know of no ranks.
All ranks have the whole of the loss, each the gradient of its own tokens: gradients are summed as over data parallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from miles_lite.train.layout import packed, padded, shard, shares
from miles_lite.train.packing import Packed
from miles_lite.train.routing_replay import PADDING


@dataclass(frozen=True)
class Context:
    """The ranks that share a row."""

    group: ProcessGroup

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def tile(self) -> int:
        """What the length of a row that is shared is a multiple of."""
        return 2 * self.size

    def share(self, whole: Packed) -> tuple[Packed, Tensor]:
        """This rank's part of a pass over one row, whose layout is `layout.shard`'s, and which of the P scored pairs
        its hidden states predict, int64."""
        rows, length = whole.tokens.shape
        assert rows == 1, "only one row is shared"
        layout = padded(whole.layout or packed([length]), self.tile)
        rank = dist.get_rank(self.group)
        stretches = shares(layout.tokens, world=self.size)[rank]
        own = torch.cat([torch.arange(each.start, each.stop, device=whole.tokens.device) for each in stretches])
        place = own.new_full((layout.tokens,), -1)
        place[own] = torch.arange(len(own), device=own.device)
        pairs = torch.nonzero(place[whole.states] >= 0).flatten()
        part = replace(
            whole,
            tokens=cut(whole.tokens, own, layout.tokens),
            positions=cut(whole.positions, own, layout.tokens),
            experts=None if whole.experts is None else cut(whole.experts, own, layout.tokens, fill=PADDING),
            layout=shard(layout, rank=rank, world=self.size),
            states=place[whole.states[pairs]],
            targets=whole.targets[pairs],
            temperatures=whole.temperatures[pairs],
        )
        return part, pairs

    def gather(self, keys: Tensor) -> Tensor:
        """[B, H, n, D] of this rank's tokens: [B, H, ranks x n, D] of all, in order of rank."""
        gathered: Tensor = _Gather.apply(keys, self.group)  # type: ignore[no-untyped-call]
        return gathered

    def summed(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of this rank's part, over all ranks; which they are is the same for all."""
        if not counts:
            return {}
        sums = torch.stack(list(counts.values()))
        dist.all_reduce(sums, group=self.group)
        return dict(zip(counts, sums.unbind(), strict=True))

    def whole(self, scores: Sequence[Tensor], pairs: Tensor, *, count: int) -> tuple[Tensor, ...]:
        """Of scores [pairs] of this rank's pairs: [count], those of all ranks."""
        made: Tensor = _Whole.apply(torch.stack(list(scores)), pairs, count, self.group)  # type: ignore[no-untyped-call]
        return made.unbind()


def cut(row: Tensor, own: Tensor, length: int, *, fill: int = 0) -> Tensor:
    """Places `own` of a row [1, T, ...], `fill` where it is shorter than `length`."""
    more = row.new_full((1, length - row.shape[1], *row.shape[2:]), fill)
    return torch.cat([row, more], 1)[:, own]


class _Gather(torch.autograd.Function):
    """All ranks use all keys, so the gradient of a rank's own is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        own = keys.movedim(2, 0).contiguous()
        gathered = own.new_empty((len(own) * dist.get_world_size(group), *own.shape[1:]))
        dist.all_gather_into_tensor(gathered, own, group=group)
        return gathered.movedim(0, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.movedim(2, 0).contiguous()
        own = whole.new_empty((len(whole) // dist.get_world_size(ctx.group), *whole.shape[1:]))
        dist.reduce_scatter_tensor(own, whole, group=ctx.group)
        return own.movedim(0, 2), None


class _Whole(torch.autograd.Function):
    """Every rank has the whole loss, so the gradient of its own scores is what it has of them."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, pairs: Tensor, count: int, group: ProcessGroup) -> Tensor:
        ctx.save_for_backward(pairs)
        made = scores.new_zeros(len(scores), count)
        made[:, pairs] = scores
        dist.all_reduce(made, group=group)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (pairs,) = ctx.saved_tensors
        return gradient[:, pairs], None, None, None
