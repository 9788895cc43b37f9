"""An engine with the rollouts that live on it: turn, tool, turn, until they end or break.

Invariant: a rollout stays with its engine (its cache is there), so that between two moments at which something starts
or weights change, an engine and its rollouts go on by themselves, whatever the others do.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from miles_lite.scheduler.protocol import AttemptId
from miles_lite.simulation.engine import NEVER, Engine, Turn
from miles_lite.simulation.scenario import EngineModel
from miles_lite.simulation.workload import Work


@dataclass(eq=False, slots=True, kw_only=True)
class Session(Turn):
    """A running rollout, at one of its turns or at the tool after it."""

    who: AttemptId
    work: Work
    host: int
    version: int
    """The engine's when it started."""
    turn: int = 0
    broke: bool = False
    """Infrastructure ended it."""


Ended = tuple[float, Session]
"""When, what."""


class Host:
    """`run` until now first, if `due` has come, then any of the others."""

    def __init__(self, model: EngineModel, *, observation: float) -> None:
        """`observation`: tokens that a tool's answer adds."""
        self._observation = observation
        self.engine = Engine(model)
        self.due = NEVER
        self._tools: list[tuple[float, int, Session]] = []
        self._order = 0

    def run(self, until: float) -> list[Ended]:
        """Go on until then. The rollouts that ended, in order."""
        engine, tools, ended = self.engine, self._tools, list[Ended]()
        while True:
            if tools and tools[0][0] <= engine.due:
                if (at := tools[0][0]) > until:
                    break
                session = heappop(tools)[2]
                engine.advance(at)
                if session.work.fails_after == session.turn:
                    session.broke = True
                    self._end(session, ended)
                else:
                    self._next_turn(session)
            elif engine.due <= until:
                engine.advance(engine.due)
                for turn in engine.finish():
                    assert isinstance(turn, Session)
                    self._turn_ended(turn, ended)
            else:
                break
        self._plan()
        return ended

    def start(self, session: Session, now: float) -> None:
        """Its first turn arrives."""
        self.engine.advance(now)
        self.engine.submit(session)
        self._plan()

    def pause(self, now: float, seconds: float, *, keep_cache: bool) -> None:
        """Stand still for a weight update."""
        self.engine.advance(now)
        self.engine.pause(seconds, keep_cache=keep_cache)
        self._plan()

    def take_busy(self, now: float) -> float:
        """Seconds at full speed since the last look."""
        self.engine.advance(now)
        self.engine.plan()
        self._plan()
        busy, self.engine.busy = self.engine.busy, 0.0
        return busy

    def _turn_ended(self, session: Session, ended: list[Ended]) -> None:
        work, turn = session.work, session.turn
        session.context = session.cached = session.context + session.decode
        if turn + 1 == len(work.decode) and work.fails_after != turn:
            self._end(session, ended)
        else:
            self._order += 1
            heappush(self._tools, (self.engine.now + work.tools[turn], self._order, session))

    def _next_turn(self, session: Session) -> None:
        session.turn += 1
        session.context += self._observation
        session.decode = session.work.decode[session.turn]
        self.engine.submit(session)

    def _end(self, session: Session, ended: list[Ended]) -> None:
        self.engine.forget(session.cached)
        ended.append((self.engine.now, session))

    def _plan(self) -> None:
        self.due = min(self.engine.due, self._tools[0][0] if self._tools else NEVER)
