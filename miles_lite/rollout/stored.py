"""The samples of a rollout in Ray's object store: agent workers put them there, ranks that train them fetch them.

Invariant: whoever called the agent worker owns them, so that they outlive it; no other process holds their arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from miles_lite.sample import Sample


@dataclass(frozen=True, slots=True)
class Stored:
    """What an agent worker's call returned beside its record."""

    reference: ray.ObjectRef[list[Sample]]

    def fetch(self) -> Sequence[Sample]:
        """The arrays are read-only views of the store."""
        return ray.get(self.reference)
