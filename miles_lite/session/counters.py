"""What a session server counts, by name: a number that is not listed here cannot be counted.

Invariant: docs/metrics.md has these names, and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

GAUGES = ("sessions", "sessions_resident", "session_bytes", "calls")
"""What is there now: these may fall."""

COUNTERS = frozenset(
    {
        "sessions_created",
        "sessions_expired",
        "sessions_recreated",
        "turns",
        "prompt_tokens",
        "completion_tokens",
        "forks",
        "retries_joined",
        "retries_replayed",
        "sampling_overridden",
        "unknown_fields",
        "system_joined",
        "system_placed",
        "calls_rewritten",
        "engine_retries",
        "worker_restarts",
    }
)
BY_REASON = ("forks_", "roots_")
"""Beginnings of names that end in a reason."""


class Counters(Counter[str]):
    """Sums of what was added."""

    def add(self, counts: Mapping[str, int]) -> None:
        """Raises KeyError for a name that is not listed."""
        if unlisted := [name for name in counts if name not in COUNTERS and not name.startswith(BY_REASON)]:
            raise KeyError(f"not in session/counters.py: {', '.join(unlisted)}")
        self.update(counts)
