"""An order of very many prompts that is computed place by place, and held nowhere."""

from __future__ import annotations

import hashlib

from miles_lite.rollout.by_place import ByPlace

SHUFFLED = 1 << 20
"""Prompts up to which an order is a shuffled list; of more, a `Permutation`."""
ROUNDS = 4


class Permutation(ByPlace[int]):
    """A bijection of range(size) that a seed names: a Feistel network over the next power of 4, walked until the place
    is within (format-preserving encryption; Black and Rogaway, 2002)."""

    def __init__(self, size: int, seed: str) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        self._keys = [hashlib.blake2b(f"{seed}/{each}".encode()).digest()[:16] for each in range(ROUNDS)]

    def __len__(self) -> int:
        return self._size

    def at(self, place: int) -> int:
        if not 0 <= place < self._size:
            raise IndexError(place)
        place = self._once(place)
        while place >= self._size:
            place = self._once(place)
        return place

    def _once(self, at: int) -> int:
        left, right = at >> self._half, at & self._mask
        for key in self._keys:
            digest = hashlib.blake2b(right.to_bytes(8, "little"), key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & self._mask)
        return left << self._half | right
