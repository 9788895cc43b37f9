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
from heapq import heappop, heappush

from miles_lite.simulation.scenario import EngineModel

NEVER = float("inf")
FULL = 0.8
"""Of the KV cache: who holds more of it preempts soon, so that this is full speed."""
RESERVED = 0.5
"""Share of a turn's tokens that admission keeps room for: SGLang's `new_token_ratio`, which decays from 0.7."""


@dataclass(eq=False, slots=True)
class Turn:
    """What a rollout asks of its engine: to decode `decode` tokens after `context`, of which `cached` were there."""

    context: float
    cached: float
    decode: float
    ends_at: float = 0.0
    """In token time, once it is admitted."""


class Engine:
    """`advance` first, then any of the verbs, which say in `due` when to come back if nothing else is asked."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model
        self._step_by_slots, self._step_by_cache = model.step / model.slots, model.step / (FULL * model.kv_tokens)
        self.now = 0.0
        self.due = NEVER
        """When a turn ends or the cache overflows, if nothing arrives before."""
        self._tokens = self._stall = self._paused = self._idle = 0.0
        self._seconds = model.step
        self._turns: dict[int, Turn] = {}
        """Those that run, by when they were admitted: the youngest is the last."""
        self._ends: list[tuple[float, int]] = []
        """A heap of when they end, in token time; of those that were retracted meanwhile, too."""
        self._admitted = 0
        self.waiting: deque[Turn] = deque()
        self.kv = 0.0
        self.preemptions = 0
        self.decoded = 0.0
        self.busy = 0.0

    @property
    def running(self) -> int:
        """Turns that are decoded."""
        return len(self._turns)

    @property
    def kv_use(self) -> float:
        """Share of the KV cache that running turns hold."""
        return self.kv / self._model.kv_tokens

    def advance(self, now: float) -> None:
        """Decode until `now`."""
        seconds, self.now = now - self.now, now
        if self._paused or self._stall:
            seconds = self._stand(seconds)
        if self._turns and seconds > 0.0:
            tokens = seconds / self._seconds
            made = tokens * len(self._turns)
            self._tokens += tokens
            self.kv += made
            self.decoded += made
            full = self._when_full(made, tokens * self.kv)
            self.busy += full if full < seconds else seconds

    def _stand(self, seconds: float) -> float:
        """What is left of those seconds after standing still, and after prefill."""
        paused = min(seconds, self._paused)
        self._paused -= paused
        prefilled = min(seconds - paused, self._stall)
        self._stall -= prefilled
        if self._turns:
            self.busy += prefilled
        return seconds - paused - prefilled

    def _when_full(self, tokens: float, context: float) -> float:
        """Seconds in which a full engine decodes as many tokens that read as much context: its steps are shared by as
        many sequences as there are slots, or by as many as hold `FULL` of the cache."""
        by_slots, by_cache = tokens * self._step_by_slots, context * self._step_by_cache
        step = by_slots if by_slots > by_cache else by_cache
        return step + tokens * self._model.sequence + context * self._model.context

    def submit(self, turn: Turn) -> None:
        """A turn arrives; of what it left in the cache a share may have had to go."""
        if turn.cached:
            self._idle -= turn.cached
            free = self._model.kv_tokens - self.kv
            if free < self._idle + turn.cached:
                turn.cached *= max(0.0, free) / max(1.0, self._idle + turn.cached)
        self.waiting.append(turn)
        self._admit()
        self.plan()

    def finish(self) -> list[Turn]:
        """The turns that have ended by now. Retracts what no longer fits, admits what does."""
        ended = []
        ends, turns, reached = self._ends, self._turns, self._tokens + 1e-6
        while ends and ends[0][0] <= reached:
            turn = turns.pop(heappop(ends)[1], None)
            if turn is not None:
                held = turn.context + turn.decode
                self._leave(held)
                self._idle += held
                ended.append(turn)
        while self.kv > self._model.kv_tokens and len(turns) > 1:
            self._retract()
        if self.waiting:
            self._admit()
        self.plan()
        return ended

    def forget(self, cached: float) -> None:
        """A rollout has ended: what it left in the cache may go."""
        self._idle -= cached

    def pause(self, seconds: float, *, keep_cache: bool) -> None:
        """Stand still for a weight update. Without the cache, what runs is prefilled again."""
        self._paused += seconds
        if not keep_cache:
            self._stall += self.kv / self._model.prefill
            self._idle = 0.0
        self.plan()

    def plan(self) -> None:
        """Find the speed from now on, and `due`."""
        ends, turns, model = self._ends, self._turns, self._model
        while ends and ends[0][1] not in turns:
            heappop(ends)
        if not ends:
            self.due = NEVER
            return
        running = len(turns)
        self._seconds = model.step + running * model.sequence + self.kv * model.context
        tokens = ends[0][0] - self._tokens
        if tokens * running > (room := model.kv_tokens - self.kv + running) and running > 1:
            tokens = room / running
        standing = self._paused + self._stall
        self.due = self.now + standing + (tokens * self._seconds if tokens > 0.0 else 0.0)

    def _admit(self) -> None:
        model, turns = self._model, self._turns
        while self.waiting and len(turns) < model.slots:
            turn = self.waiting[0]
            if turns and self.kv + turn.context + RESERVED * turn.decode > model.kv_tokens:
                return
            self.waiting.popleft()
            self._stall += (turn.context - turn.cached) / model.prefill
            turn.ends_at = self._tokens + turn.decode
            self.kv += turn.context
            self._admitted += 1
            turns[self._admitted] = turn
            heappush(self._ends, (turn.ends_at, self._admitted))

    def _retract(self) -> None:
        """The youngest goes back to the front of the queue, with what it has decoded."""
        _, turn = self._turns.popitem()
        left = turn.ends_at - self._tokens
        turn.context, turn.cached, turn.decode = turn.context + turn.decode - left, 0.0, left
        self._leave(turn.context)
        self.preemptions += 1
        self.waiting.appendleft(turn)

    def _leave(self, context: float) -> None:
        self.kv -= context
        if self.kv < 0.0 or not self._turns:
            self.kv = 0.0
