"""What agent workers put into Ray's object store: the samples of a rollout, which the ranks that train them fetch, and
what its session said.

Invariant: whoever called the agent worker owns it, so that it outlives the worker; no other process holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import ray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """What an agent worker's call returned beside its record."""

    reference: ray.ObjectRef[T]

    def fetch(self) -> T:
        """Arrays are read-only views of the store."""
        return ray.get(self.reference)
