"""An order of very many prompts that is computed place by place, and held nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

SHUFFLED = 1 << 20
"""Prompts up to which an order is a shuffled list; of more, a `Permutation`."""
ROUNDS = 4


class Permutation(Sequence[int]):
    """A bijection of range(size) that a seed names: a Feistel network over the next power of 4, walked until the place
    is within (format-preserving encryption; Black and Rogaway, 2002)."""

    def __init__(self, size: int, seed: str) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        self._keys = [hashlib.blake2b(f"{seed}/{each}".encode()).digest()[:16] for each in range(ROUNDS)]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        if isinstance(at, slice):
            return [self[each] for each in range(self._size)[at]]
        if not 0 <= at < self._size:
            raise IndexError(at)
        at = self._once(at)
        while at >= self._size:
            at = self._once(at)
        return at

    def _once(self, at: int) -> int:
        left, right = at >> self._half, at & self._mask
        for key in self._keys:
            digest = hashlib.blake2b(right.to_bytes(8, "little"), key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & self._mask)
        return left << self._half | right
