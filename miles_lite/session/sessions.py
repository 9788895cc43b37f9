"""The sessions of a server: those in memory, and those that only the journal holds.

Invariant: a session in memory is what the journal holds of it, turn for turn. A deleted session never comes back. What
is in memory beyond `resident_bytes` is only what is in use.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from sys import getsizeof

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.process.tracing import NOWHERE
from miles_lite.sample import Failure
from miles_lite.session.counters import Counters
from miles_lite.session.dialects.json_reuse import Bodies
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest
from miles_lite.session.engine.prompt_json import Prompts
from miles_lite.session.errors import failure_of, journal_failed, unknown_answer, unknown_session
from miles_lite.session.history import forks
from miles_lite.session.history.match import Matcher
from miles_lite.session.history.placing import Placed
from miles_lite.session.history.retries import Retries
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn, pack_ids, sampling
from miles_lite.session.journal.row import Entry, Receipt
from miles_lite.session.journal.store import Journal, Stored
from miles_lite.session.memory import Heap
from miles_lite.session.shared_request import Call

log = logging.getLogger(__name__)

_SESSION_BYTES, _TURN_BYTES = 4_000, 1_500
"""What Python spends on a session and on a turn beside arrays and text, about."""


@dataclass(slots=True)
class Session:
    """One agent's conversation(s); `sampling` is the run's, empty when the client chooses.

    `size` is in bytes of memory, about, and `beside` what of it its bodies have.
    `recreated`: a request named it and nobody had opened it. `used` is in seconds since the epoch. `failure`: what let
    its last call down, if anything. `traced`: the headers of its opening that name a span.
    """

    session_id: str
    tree: Tree
    sampling: JsonObject
    recreated: bool = False
    used: float = 0.0
    size: int = _SESSION_BYTES
    beside: int = 0
    deleted: bool = False
    failure: Failure | None = None
    traced: Mapping[str, str] = field(default_factory=dict)
    retries: Retries = field(default_factory=Retries)
    counts: Counters = field(default_factory=Counters)
    bodies: Bodies = field(default_factory=Bodies)

    @property
    def calls(self) -> list[Call]:
        """Those under way, or not delivered."""
        return self.retries.calls

    @property
    def receipts(self) -> list[Receipt]:
        """Of the tree's turns, one each."""
        return self.retries.receipts

    def ended(self, answering: asyncio.Task[ChatAnswer]) -> None:
        """Its last call has an answer, or will have none."""
        self.failure = None if answering.cancelled() else failure_of(answering.exception())

    def commit(self, entry: Entry) -> tuple[Turn, Mapping[str, int]]:
        """Add a turn that the journal has; the turn, and what was counted."""
        known = self.tree.has_tools_of(entry.caller)
        turn = entry.commit(self.tree)
        self.retries.committed(turn, entry.receipt)
        beside, self.beside = self.beside, self.bodies.size
        tools = 0 if known else weight([entry.caller.tools, entry.caller.options])
        self.size += _size(entry) + tools + self.beside - beside
        counts = {**entry.counts, **forks.counts(self.tree, turn)}
        self.counts.add(counts)
        return turn, counts

    def same_requests(self, placed: Placed, params: JsonMapping, request: ChatRequest) -> list[Turn]:
        """Turns that answered the very tokens of this context, under the same parameters and constraints."""
        place, suffix = placed.place, placed.suffix
        siblings = self.tree.children(place.turn)
        ids = pack_ids(suffix.ids) if siblings else b""
        return [
            turn
            for turn in siblings
            if turn.prompt_bytes == ids
            and (turn.caller, turn.drop) == (place.caller, suffix.drop)
            and sampling(turn.output) == params
            and self.receipts[turn.number].constrained == request.constrained
        ]

    def with_previous(self, request: ChatRequest) -> ChatRequest:
        """The request with the conversation before it, when it names the answer it follows. Raises ApiError 400."""
        if request.after is None:
            return request
        turns = (turn for turn in reversed(self.tree.turns) if self.receipts[turn.number].answer_id == request.after)
        turn = next(turns, None)
        if turn is None:
            raise unknown_answer(request.after)
        before = self.tree.history(turn)[self.receipts[turn.number].instructed :]
        head = int(request.instructed)
        return replace(request, messages=[*request.messages[:head], *before, *request.messages[head:]])


class Sessions:
    """Opens, finds, spills, expires and deletes sessions."""

    def __init__(
        self, journal: Journal | None, *, matcher: Matcher, idle_seconds: float, resident_bytes: int = 2**62
    ) -> None:
        """Without a journal nothing is spilled, and `resident_bytes` bounds nothing."""
        self._journal, self._matcher = journal, matcher
        self._idle_seconds, self._resident_bytes = idle_seconds, resident_bytes
        self._resident: OrderedDict[str, Session] = OrderedDict()
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._deleted: dict[str, float] = {}
        self._heap = Heap()
        self.bytes = 0
        self.prompts = Prompts()
        self.recreated = 0
        self._spilled = 0

    async def open(self) -> None:
        """Learn what the journal holds."""
        if self._journal is not None:
            self._spilled, self._deleted = await self._journal.known()

    def live(self) -> int:
        return len(self._resident) + self._spilled

    def empty_tree(self) -> Tree:
        """Of a session that nobody opened."""
        return Tree(self._matcher)

    def peek(self, session_id: str) -> Session | None:
        """The session if it is in memory, without using it."""
        return self._resident.get(session_id)

    def resident(self) -> list[Session]:
        return list(self._resident.values())

    async def create(self, sampling: JsonObject, *, traced: Mapping[str, str] = NOWHERE) -> Session:
        """A session with a fresh id, on disk when this returns. Raises sqlite3.Error, and there is no session then."""
        session = Session(uuid.uuid4().hex, Tree(self._matcher), sampling, traced=traced)
        await self._admit_new(session)
        return session

    async def obtain(self, session_id: str) -> Session:
        """The session, made and marked when nobody opened it. Raises ApiError 404 (deleted), sqlite3.Error."""
        session = await self.find(session_id)
        if session is None:
            session = Session(session_id, Tree(self._matcher), {}, recreated=True)
            self.recreated += 1
            log.warning("a request named a session that nobody opened: it is made, without the run's parameters")
            await self._admit_new(session)
        return session

    async def find(self, session_id: str) -> Session | None:
        """The session, None when nobody opened it. Raises ApiError 404 when it was deleted."""
        while session_id not in self._deleted:
            session = self._resident.get(session_id)
            if session is not None:
                session.used = time.time()
                self._resident.move_to_end(session_id)
                return session
            if self._journal is None or not await self._loaded(self._journal, session_id):
                return self._resident.get(session_id)
        raise unknown_session(session_id)

    async def commit(self, session: Session, entry: Entry) -> tuple[Turn, Mapping[str, int]]:
        """Journal a turn, then add it to the tree: turns join the tree in the journal's order. Raises ApiError."""
        if self._journal is not None and not session.deleted:
            try:
                await self._journal.append(session.session_id, entry)
            except sqlite3.Error as error:
                raise journal_failed(error) from error
        if session.deleted:
            raise unknown_session(session.session_id)
        before = session.size
        made = session.commit(entry)
        session.used = time.time()
        self.bytes += session.size - before
        self._spill()
        return made

    async def delete(self, session_id: str) -> Session:
        """Forget the session for good, on disk too. Raises ApiError 404."""
        session = await self.find(session_id)
        if session is None:
            raise unknown_session(session_id)
        self._deleted[session_id] = time.time()
        session.deleted = True
        self._evict(session)
        if self._journal is not None:
            await self._journal.delete(session_id)
        return session

    async def expire(self) -> int:
        """Forget sessions that nobody has asked for in `idle_seconds`; answers how many."""
        before = time.time() - self._idle_seconds
        stale = [session for session in self.resident() if session.used < before and not session.calls]
        for session in stale:
            self._evict(session)
        count = len(stale)
        if self._journal is not None:
            kept = await self._journal.expire(before, spare=frozenset([*self._resident, *self._loading]))
            self._spilled = max(0, self._spilled - max(0, kept - count))
            count = max(count, kept)
        self._deleted = {name: at for name, at in self._deleted.items() if at >= before}
        return count

    async def _admit_new(self, session: Session) -> None:
        """In memory at once, and on disk when this returns; in neither where the journal fails."""
        self._admit(session)
        if self._journal is not None:
            try:
                await self._journal.create(
                    session.session_id, session.sampling, recreated=session.recreated, traced=session.traced
                )
            except sqlite3.Error:
                self._evict(session)
                raise

    def _admit(self, session: Session) -> None:
        session.used = time.time()
        self._resident[session.session_id] = session
        self.bytes += session.size
        self._spill()

    def _evict(self, session: Session) -> None:
        if self._resident.pop(session.session_id, None) is not None:
            self.bytes -= session.size
            self._heap.left()
            self.prompts.forget(session.session_id)

    def _spill(self) -> None:
        """Leave the sessions used longest ago to the journal, until the rest fits."""
        if self._journal is None or self.bytes <= self._resident_bytes:
            return
        for session in self.resident()[:-1]:
            if not session.calls and session.session_id not in self._loading:
                self._evict(session)
                self._spilled += 1
                self._journal.touch(session.session_id, session.used)
            if self.bytes <= self._resident_bytes:
                return

    async def _loaded(self, journal: Journal, session_id: str) -> bool:
        """Bring the session into memory; False when the journal has none. Many may wait for one load."""
        loading = self._loading.get(session_id)
        if loading is None:
            loading = self._loading[session_id] = asyncio.create_task(self._load(journal, session_id))
            loading.add_done_callback(lambda _: self._loading.pop(session_id))
        return await asyncio.shield(loading)

    async def _load(self, journal: Journal, session_id: str) -> bool:
        stored = await journal.load(session_id)
        if stored is not None and session_id not in self._deleted:
            self._spilled -= 1
            self._admit(_restored(session_id, stored, self._matcher))
        return stored is not None


def _restored(session_id: str, stored: Stored, matcher: Matcher) -> Session:
    """What nobody is known to have heard are the leaves."""
    session = Session(session_id, Tree(matcher), stored.sampling, stored.recreated, traced=stored.traced)
    for entry in stored.entries:
        session.commit(entry)
    session.retries.restored = len(stored.entries)
    return session


def _size(entry: Entry) -> int:
    """Bytes of memory, about."""
    arrays = entry.prompt_ids.nbytes + len(entry.output.token_bytes)
    arrays += 0 if entry.output.experts is None else entry.output.experts.nbytes
    return _TURN_BYTES + arrays + weight([entry.messages, entry.reply])


def weight(value: Json) -> int:
    """Bytes of memory that JSON takes as objects. Keys, of which there are few, are not counted."""
    size, level = 0, [value]
    while level:
        node = level.pop()
        size += getsizeof(node)
        if isinstance(node, dict):
            level.extend(node.values())
        elif isinstance(node, list | tuple):
            level.extend(node)
    return size
