"""When failures stop a run, and when they stop a prompt."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from miles_lite.scheduler.schedule import Schedule


class Breaker:
    """The last rollouts, by how they ended, and the prompts whose groups fail in a row; O(1) each."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._last: deque[str] = deque(maxlen=schedule.failure_window)
        self._words: dict[str, str] = {}
        self._failed = 0
        self._in_a_row: Counter[int] = Counter()
        self.quarantined: set[int] = set()

    def rollout(self, failed: str, why: str) -> str | None:
        """One has ended, `failed` at a boundary or ("") not; why the run must stop, if it must."""
        if len(self._last) == self._last.maxlen:
            self._failed -= self._last[0] != ""
        self._last.append(failed)
        self._failed += failed != ""
        if not failed:
            return None
        self._words[failed] = why
        share = self._failed / self._schedule.failure_window
        if len(self._last) < self._schedule.failure_window or share <= self._schedule.failure_share:
            return None
        where, count = Counter(filter(None, self._last)).most_common(1)[0]
        return (
            f"{self._failed} of the last {len(self._last)} rollouts failed, more than --max-failure-share "
            f"{self._schedule.failure_share:g}: {where} x{count}, lately: {self._words[where] or 'no text'}"
        )

    def group(self, prompt: int, *, failed: bool) -> bool:
        """A group of `prompt` has ended; whether that prompt is not to be dealt again."""
        if not failed:
            self._in_a_row.pop(prompt, None)
            return False
        self._in_a_row[prompt] += 1
        if not 0 < self._schedule.quarantine_after <= self._in_a_row[prompt]:
            return False
        del self._in_a_row[prompt]
        self.quarantined.add(prompt)
        return True

    def as_json(self) -> dict[str, Any]:
        return {
            "last": list(self._last),
            "words": dict(self._words),
            "in_a_row": list(self._in_a_row.items()),
            "quarantined": sorted(self.quarantined),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._last.extend(state["last"])
        self._failed = sum(bool(failed) for failed in self._last)
        self._words = state["words"]
        self._in_a_row = Counter(dict(map(tuple, state["in_a_row"])))
        self.quarantined = set(state["quarantined"])
