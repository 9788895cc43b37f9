"""Which experts routed each token of a mixture-of-experts model, as engines return them.

Row t of a sequence is the routing of token t; its last token has been sampled and not yet routed, so there is one row
less than tokens. A turn keeps rows from max(start - 1, 0) on: the token before its prompt ended the turn before.

Invariant: the rows of a path are those that one request for the whole sequence would have returned.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from miles_lite.errors import UserError
from miles_lite.model_folder import text_config


def expert_layers(model_path: str | Path) -> int:
    """Layers of a model, all of which engines report on. Raises UserError for a model without experts."""
    config = text_config(model_path)
    if not any("expert" in name for name in config):
        raise UserError(
            f"--use-rollout-routing-replay (or --sglang-enable-return-routed-experts): {model_path} is no "
            "mixture-of-experts model: leave it out"
        )
    return int(config["num_hidden_layers"])


def decode_experts(payload: object, *, rows: int, layers: int) -> np.ndarray:
    """Base64 of little-endian int32 [rows, layers, topk] in the narrowest of uint8, uint16 and int32.

    Raises ValueError for a payload of another shape.
    """
    if not isinstance(payload, str):
        raise ValueError("no routed experts: start the engines with --sglang-enable-return-routed-experts")
    try:
        flat = np.frombuffer(base64.b64decode(payload, validate=True), "<i4")
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"routed experts that are not base64 of int32: {error}") from error
    if rows < 1 or len(flat) == 0 or len(flat) % (rows * layers):
        raise ValueError(f"{len(flat)} routed experts for {rows} tokens of {layers} layers")
    return narrowed(flat.reshape(rows, layers, -1))


def narrowed(experts: np.ndarray) -> np.ndarray:
    """A copy in the smallest unsigned type that holds it; int32 when there are negative numbers or large ones."""
    if experts.size and experts.min() < 0:
        return experts.astype(np.int32)
    largest = int(experts.max(initial=0))
    return experts.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32)


class Routed(Protocol):
    """A turn, as far as its routing goes: see `Turn`."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def experts(self) -> np.ndarray | None: ...


def path_experts(path: Sequence[Routed]) -> np.ndarray | None:
    """[end - 1, layers, topk] of a path of turns; None when a turn of it has no rows, or too few.

    Where a turn goes on from a shortened one, the shortened one's rows are cut with it.
    """
    pieces = []
    for turn, following in zip(path, [*path[1:], None], strict=True):
        first, last = max(turn.start - 1, 0), turn.end - 1
        if turn.experts is None or len(turn.experts) < last - first:
            return None
        own = turn.experts[len(turn.experts) - (last - first) :]
        pieces.append(own if following is None else own[: max(following.start - 1, 0) - first])
    return np.concatenate(pieces)
