"""One engine as a queue whose batch shares its decoding: how long turns take, and when they wait.

Invariant: it is asked about events of turns, not of tokens. Token time is the number of tokens that each running
sequence has decoded since the engine began: a turn of n tokens that is admitted at v ends at v + n, whatever the batch
is meanwhile. Between two events its speed is constant; contexts that grow slow it down at the next.

A decoding step of b sequences with k tokens of context in all takes `step + b * sequence + k * context` seconds: the
weights are read once, the cache of each token once (the roofline of memory-bound decoding). Prefill comes first and
stops decoding, as SGLang schedules it. What does not fit into the KV cache waits; what no longer fits is retracted,
the youngest first, and prefilled again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

from miles_lite.simulation.scenario import EngineModel

NEVER = float("inf")
FULL = 0.8
"""Of the KV cache: who holds more of it preempts soon, so that this is full speed."""
RESERVED = 0.5
"""Share of a turn's tokens that admission keeps room for: SGLang's `new_token_ratio`, which decays from 0.7."""
_ENDED = -1


@dataclass(eq=False, slots=True)
class Turn:
    """What a rollout asks of its engine: to decode `decode` tokens after `context`, of which `cached` were there."""

    rollout: int
    context: float
    cached: float
    decode: float
    admitted: int = 0
    """Changes with every admission and retraction: what was noted of an earlier one is void."""
    ends_at: float = 0.0
    """In token time."""
    session: Any = None
    """Whose it is: the asker's to know."""


class Engine:
    """`advance` first, then any of the verbs, then `next_event`: when to come back."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model
        self.now = 0.0
        self._tokens = self._stall = self._paused = self._idle = 0.0
        self._seconds = model.step
        self._ends: list[tuple[float, int, int, Turn]] = []
        self._young: list[tuple[int, Turn]] = []
        self.waiting: deque[Turn] = deque()
        self.running = 0
        self.kv = 0.0
        self.preemptions = 0
        self.decoded = 0.0
        self.busy = 0.0

    @property
    def kv_use(self) -> float:
        """Share of the KV cache that running turns hold."""
        return self.kv / self._model.kv_tokens

    def advance(self, now: float) -> None:
        """Decode until `now`."""
        seconds, self.now = now - self.now, now
        if self._paused:
            paused = min(seconds, self._paused)
            self._paused -= paused
            seconds -= paused
        if not seconds:
            return
        stalled = min(seconds, self._stall)
        self._stall -= stalled
        if self.running:
            seconds -= stalled
            tokens = seconds / self._seconds
            self._tokens += tokens
            self.kv += tokens * self.running
            self.decoded += tokens * self.running
            self.busy += stalled + seconds * self._full()

    def submit(self, turn: Turn) -> None:
        """A turn arrives; of what it left in the cache a share may have had to go."""
        self._idle -= turn.cached
        turn.cached *= min(1.0, max(0.0, self._model.kv_tokens - self.kv) / max(1.0, self._idle + turn.cached))
        self.waiting.append(turn)
        self._admit()

    def finish(self) -> list[Turn]:
        """The turns that have ended by now. Retracts what no longer fits, admits what does."""
        ended = []
        reached = self._tokens + 1e-6
        while self._ends and self._ends[0][0] <= reached:
            _, _, admitted, turn = heappop(self._ends)
            if admitted == turn.admitted:
                self._leave(turn, turn.context + turn.decode)
                turn.admitted = _ENDED
                self._idle += turn.context + turn.decode
                ended.append(turn)
        while self.kv > self._model.kv_tokens and self.running > 1:
            self._retract()
        self._admit()
        return ended

    def forget(self, cached: float) -> None:
        """A rollout has ended: what it left in the cache may go."""
        self._idle -= cached

    def cancel(self, turn: Turn) -> None:
        """End a turn early, wherever it is."""
        if turn in self.waiting:
            self.waiting.remove(turn)
        else:
            self._leave(turn, turn.context + self._made(turn))
        turn.admitted = _ENDED
        self._admit()

    def pause(self, seconds: float, *, keep_cache: bool) -> None:
        """Stand still for a weight update. Without the cache, what runs is prefilled again."""
        self._paused += seconds
        if not keep_cache:
            self._stall += self.kv / self._model.prefill
            self._idle = 0.0

    def next_event(self) -> float:
        """When a turn ends or the cache overflows, if nothing arrives before."""
        while self._ends and self._ends[0][2] != self._ends[0][3].admitted:
            heappop(self._ends)
        if not self.running:
            return NEVER
        model, running = self._model, self.running
        self._seconds = model.step + running * model.sequence + self.kv * model.context
        tokens = self._ends[0][0] - self._tokens
        if running > 1:
            tokens = min(tokens, (model.kv_tokens - self.kv) / running + 1.0)
        return self.now + self._paused + self._stall + max(0.0, tokens) * self._seconds

    def _full(self) -> float:
        """Tokens a second, as a share of what a full engine decodes with contexts of the same lengths."""
        model, each = self._model, max(1.0, self.kv / self.running)
        full = min(model.slots, FULL * model.kv_tokens / each)
        best = full / (model.step + full * (model.sequence + each * model.context))
        return min(1.0, self.running / self._seconds / best)

    def _admit(self) -> None:
        model = self._model
        while self.waiting and self.running < model.slots:
            turn = self.waiting[0]
            if self.running and self.kv + turn.context + RESERVED * turn.decode > model.kv_tokens:
                return
            self.waiting.popleft()
            self._stall += (turn.context - turn.cached) / model.prefill
            turn.admitted += 1
            turn.ends_at = self._tokens + turn.decode
            self.kv += turn.context
            self.running += 1
            heappush(self._ends, (turn.ends_at, turn.rollout, turn.admitted, turn))
            self._young.append((turn.admitted, turn))

    def _retract(self) -> None:
        """The youngest goes back to the front of the queue, with what it has decoded."""
        admitted, turn = self._young.pop()
        while admitted != turn.admitted:
            admitted, turn = self._young.pop()
        made = self._made(turn)
        self._leave(turn, turn.context + made)
        turn.context, turn.cached, turn.decode = turn.context + made, 0.0, turn.decode - made
        turn.admitted += 1
        self.preemptions += 1
        self.waiting.appendleft(turn)

    def _made(self, turn: Turn) -> float:
        return turn.decode - (turn.ends_at - self._tokens)

    def _leave(self, turn: Turn, context: float) -> None:
        self.running -= 1
        self.kv = max(0.0, self.kv - context) if self.running else 0.0
        if len(self._young) > 4 * self.running + 64:
            self._young = [entry for entry in self._young if entry[0] == entry[1].admitted and entry[1] is not turn]
            self._ends = [entry for entry in self._ends if entry[2] == entry[3].admitted and entry[3] is not turn]
            heapify(self._ends)
