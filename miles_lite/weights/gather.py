"""A model's weights as its checkpoint files have them, gathered piece by piece from the ranks that hold them.

Invariant: no rank holds more of the model in full than the pieces it was asked for and has not given away. Where the
model is sharded every rank takes part in every piece, led by rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from miles_lite.weights.compat import left_out, published

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_END = -1


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank that holds a part. Collective where it is sharded."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()


class Published:
    """The weights of `model` under the names and in the shapes of its checkpoint files, tied ones once.

    `state` is the model's own, whose tensors may be sharded; floats are given in `dtype`. On rank 0: `fetch`, and
    `close` at the end; on the others `follow`.
    """

    def __init__(self, model: PreTrainedModel, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.model = model
        self._state = {name: state[name] for name in state if name not in left_out(model)}
        self._dtype = dtype
        self._sharded = any(isinstance(tensor, DTensor) for tensor in self._state.values())
        shapes = {name: self._shape(tensor) for name, tensor in self._state.items()}
        self.layout: Mapping[str, Tensor] = published(model, shapes)
        """Of each tensor, in order: shape and dtype (on torch's meta device)."""
        self._pieces = _pieces(model, shapes, self.layout)
        self._piece_of = {name: at for at, (_, names) in enumerate(self._pieces) for name in names}
        self._gathered: dict[str, Tensor] = {}

    def fetch(self, names: Sequence[str]) -> Iterator[Tensor]:
        """The tensors of `names`, in full, each given away once. Collective where the model is sharded."""
        for name in names:
            if name not in self._gathered:
                self._gathered |= published(self.model, self._gather(self._lead(self._piece_of[name])))
            yield self._gathered.pop(name)

    def follow(self) -> None:
        """Take part in what rank 0 fetches, until it is closed there."""
        while self._sharded and (piece := self._lead(_END)) != _END:
            self._gather(piece)

    def close(self) -> None:
        """Let the other ranks go."""
        self._gathered.clear()
        self._lead(_END)

    def _lead(self, piece: int) -> int:
        """Rank 0's `piece`, on every rank."""
        if not self._sharded:
            return piece
        told = torch.tensor([piece])
        dist.broadcast(told, 0)
        return int(told)

    def _gather(self, piece: int) -> dict[str, Tensor]:
        sources, _ = self._pieces[piece]
        return {name: whole(self._cast(self._state[name])) for name in sources}

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._dtype_of(tensor))

    def _shape(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=self._dtype_of(tensor), device="meta")

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if tensor.is_floating_point() else tensor.dtype


def _pieces(
    model: PreTrainedModel, shapes: Mapping[str, Tensor], layout: Mapping[str, Tensor]
) -> list[tuple[list[str], list[str]]]:
    """What is gathered together: a model's tensors, and those of its files that are made of them and of no others."""
    pieces: dict[str, tuple[list[str], list[str]]] = {}
    for source, shape in shapes.items():
        names = list(published(model, {source: shape}))
        joined = {id(pieces[name]): pieces[name] for name in names if name in pieces}.values()
        piece = ([*(each for one in joined for each in one[0]), source], [*(n for one in joined for n in one[1])])
        piece[1].extend(name for name in names if name not in piece[1])
        pieces |= dict.fromkeys(piece[1], piece)
    found = list({id(piece): piece for piece in pieces.values()}.values())
    made = {
        name: tensor.shape
        for sources, _ in found
        for name, tensor in published(model, {source: shapes[source] for source in sources}).items()
    }
    if made != {name: tensor.shape for name, tensor in layout.items()}:
        return [(list(shapes), list(layout))]  # they belong together in a way that names do not show
    return found
