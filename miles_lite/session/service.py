"""Sessions and what can be done with them, without HTTP on the client's side.

Invariant: a session's tree changes only by a commit after an engine has answered; a request that fails or is cancelled
leaves it as it was.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.sample import Sample
from miles_lite.session.dialects import Stamp
from miles_lite.session.dialects.json_reuse import Bodies
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest
from miles_lite.session.engine.engine_client import EngineCalls, Generation
from miles_lite.session.engine.engine_reply import Prompt, Reader
from miles_lite.session.engine.grammar import grammar
from miles_lite.session.engine.sampling import resolve
from miles_lite.session.errors import ApiError, unknown_session
from miles_lite.session.history import forks
from miles_lite.session.history.match import Matcher
from miles_lite.session.history.placing import Placed, Placer
from miles_lite.session.history.tree import Tree, Turn, describe, pack_ids, sampling
from miles_lite.session.http.limits import Limits
from miles_lite.session.http.prometheus import Metrics
from miles_lite.session.http.shared_request import Ask, Call
from miles_lite.session.journal.store import Journal
from miles_lite.session.off_loop import HEAVY_SECONDS, OffLoop
from miles_lite.session.samples.audit import MISMATCH, mismatches
from miles_lite.session.samples.collect import Plan, collect
from miles_lite.session.samples.timelines import appender
from miles_lite.session.sessions import Session, Sessions
from miles_lite.tito import Tito
from miles_lite.tito.chat_messages import Message

log = logging.getLogger(__name__)


class Service:
    """All sessions of one server; `open` it before use, and `close` it."""

    def __init__(
        self,
        tito: Tito,
        engines: EngineCalls,
        *,
        options: SessionOptions,
        matcher: Matcher,
        context_length: int,
        journal: Journal | None = None,
    ) -> None:
        self._tito, self._engines, self._matcher = tito, engines, matcher
        self._reader = Reader(tito)
        self._plan = Plan.of(options, appender(tito))
        self._placer = Placer(
            tito,
            roles=options.tito_allowed_append_roles,
            policy=options.use_session_server,
            context_length=context_length,
        )
        self._compares = options.session_compare_template
        self._detects_snap = options.detect_timeline_snap
        self._client_chooses = options.session_client_sampling
        self._grace = options.session_disconnect_grace
        self._idle_seconds = options.session_idle_seconds
        self._context_length = context_length
        self.limits = Limits(context_length)
        self.off_loop = OffLoop()
        self._sessions = Sessions(
            journal,
            matcher=matcher,
            idle_seconds=options.session_idle_seconds,
            resident_bytes=int(options.session_memory_gb * 1e9),
        )
        self._counts: Counter[str] = Counter()
        self.metrics = Metrics(self.stats)
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._sessions.open()
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """End what runs. Idempotent."""
        calls = [call for session in self._sessions.resident() for call in session.calls]
        tasks: list[asyncio.Task[Any] | None] = [self._sweeper, *(call.task for call in calls)]
        ending = [task for task in tasks if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self.off_loop.close()

    async def create(self, sampling: dict[str, Any]) -> str:
        session = await self._sessions.create(sampling)
        self._counts["sessions_created"] += 1
        return session.session_id

    async def delete(self, session_id: str) -> None:
        """Forget the session and cancel its calls. Raises ApiError 404."""
        session = await self._sessions.delete(session_id)
        for call in session.calls:
            call.abort()

    async def describe(self, session_id: str) -> dict[str, Any]:
        """For a session that nobody opened, what an empty one has."""
        session = await self._sessions.find(session_id)
        if session is None:
            return {"session_id": session_id, "turns": [], "leaves": [], "counts": {}}
        leaves = [turn.number for turn in session.tree.leaves()]
        about: dict[str, Any] = {"session_id": session_id, "turns": describe(session.tree), "leaves": leaves}
        about |= {"counts": dict(session.counts)} | ({"recreated": True} if session.recreated else {})
        return about | ({"forks": forks.all_forks(session.tree)} if self._detects_snap else {})

    async def samples(self, session_id: str, *, max_seq_len: int | None) -> list[Sample]:
        """No samples for a session that nobody opened. Raises ApiError 404, 422."""
        session = await self._sessions.find(session_id)
        if session is None:
            return []
        metadata: dict[str, Any] = {"session_id": session_id, "counts": dict(session.counts)}
        metadata |= {"recreated": True} if session.recreated else {}
        gather = partial(collect, session.tree.copy(), self._plan, max_seq_len=max_seq_len, metadata=metadata)
        samples = await self.off_loop.run(gather, heavy=True)
        for sample in samples if self._compares else ():
            leaf = session.tree.turns[sample.metadata["leaf"]]
            sample.metadata[MISMATCH] = await asyncio.to_thread(mismatches, self._tito, leaf)
        return samples

    async def tree(self, session_id: str) -> Tree:
        """The session's turns, to be read; none for a session that nobody opened. Raises ApiError 404."""
        session = await self._sessions.find(session_id)
        return Tree(self._matcher) if session is None else session.tree

    def held(self, session_id: str) -> tuple[list[Message], Bodies]:
        """The conversation of the session's latest turn, as a client sent it last, and what is known of its bodies.

        Nothing, if the session is not in memory.
        """
        session = self._sessions.peek(session_id)
        return ([], Bodies()) if session is None else (session.tree.sent(), session.bodies)

    def options_read(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of a request's template options that the template reads; the others change nothing."""
        return self._tito.options_read(options)

    def saw(self, session_id: str, raw: bytes, request: ChatRequest) -> None:
        """`raw` said `request`, and the session's next body may begin like it."""
        session = self._sessions.peek(session_id)
        if session is not None and request.body.get("messages") is request.messages:
            session.bodies.keep(raw, request.messages)

    async def kept(self, session_id: str) -> list[Turn]:
        """The leaves that collecting keeps. Raises ApiError 404."""
        return self._plan.kept(await self.tree(session_id))

    def live(self) -> int:
        return self._sessions.live()

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is there now: sessions, those in memory, their bytes, and calls."""
        calls = sum(call.running for session in self._sessions.resident() for call in session.calls)
        return {name: float(count) for name, count in self._counts.items()} | {
            "sessions": float(self.live()),
            "sessions_resident": float(len(self._sessions.resident())),
            "sessions_recreated": float(self._sessions.recreated),
            "session_bytes": float(self._sessions.bytes),
            "calls": float(calls),
        }

    async def call(self, session_id: str, request: ChatRequest, ask: Ask, *, prefix: str) -> Call:
        """The call that answers `request`: of a repeated request the one that is there, else a fresh one.

        `prefix` begins the id of a fresh answer. Raises ApiError 404 when the session was deleted.
        """
        session = await self._sessions.obtain(session_id)
        request = session.said_before(request)
        call = session.retries.call_of(ask)
        if call is not None:
            self._count(session, retries_joined=1)
            return call
        turn = session.retries.turn_of(ask, session.tree, grace=self._grace)
        receipt = None if turn is None else session.receipts[turn.number]
        stamp = Stamp(prefix + uuid.uuid4().hex, int(time.time())) if receipt is None else receipt.stamp
        call = Call(ask.identity, stamp, grace=self._grace, release=session.retries.over)
        session.calls.append(call)
        if turn is None or receipt is None:
            call.run(self._answer(session, call, request, ask))
        else:
            self._count(session, retries_replayed=1)
            call.turn, call.prompt_tokens = turn.number, turn.end - turn.output.size
            call.tell(self._reader.told(request, turn, receipt))
        return call

    async def _answer(self, session: Session, call: Call, request: ChatRequest, ask: Ask) -> ChatAnswer:
        """Run one turn: place, generate, read, journal, commit. Raises ApiError."""
        prompt = self._sampled(session, request, await self._placed(session.tree, request, heavy=ask.heavy))
        call.prompt_tokens = prompt.tokens
        superseded = session.retries.superseded_by(ask, _alike(session, prompt, request))
        started = time.time()
        try:
            generation = await self._generate(session, call, prompt, request)
        except ApiError as error:
            if error.code != "rollback_failed" or prompt.place.turn is None:
                raise
            log.warning("the engine could not go on from turn %d and is asked anew", prompt.place.turn.number)
            whole = await self.off_loop.run(lambda: self._placer.reanchor(request), heavy=True)
            prompt = self._sampled(session, request, whole)
            generation = await self._generate(session, call, prompt, request)
        entry = self._reader.entry(request, prompt, generation, started=started, call=call, superseded=superseded)
        turn, counts = await self._sessions.commit(session, entry)
        self._sessions.prompts.keep(session.session_id, turn, prompt.text)
        self._counts.update(counts)
        if self._detects_snap:
            forks.report(session.session_id, session.tree, turn)
        call.turn = turn.number
        self.metrics.turn_seconds.observe(turn.output.finished - started)
        return self._reader.told(request, turn, entry.receipt)

    async def count_tokens(self, session_id: str, request: ChatRequest, *, heavy: bool) -> int:
        """Length of the context that `request` would be answered in. Raises ApiError."""
        return (await self._placed(await self.tree(session_id), request, heavy=heavy)).tokens

    async def _placed(self, tree: Tree, request: ChatRequest, *, heavy: bool) -> Placed:
        """Attach the request and build its ids; reads only. A tree where that took long is not asked on the loop."""

        def place() -> Placed:
            began = time.perf_counter()
            try:
                return self._placer.place(tree, request)
            finally:
                tree.slow = time.perf_counter() - began > HEAVY_SECONDS

        return await self.off_loop.run(place, heavy=heavy or tree.slow)

    def _sampled(self, session: Session, request: ChatRequest, placed: Placed) -> Prompt:
        """With the parameters it is sampled under."""
        sampling = resolve(
            session.sampling,
            request.body,
            client_chooses=self._client_chooses,
            prompt_tokens=placed.tokens,
            context_length=self._context_length,
        )
        sampling.params.update(
            grammar(
                request.constraint,
                tools=request.callable_tools,
                parser=self._tito.parser,
                in_reasoning=placed.suffix.opens_reasoning,
            )
        )
        place, suffix = placed.place, placed.suffix
        text = self._sessions.prompts.write(session.session_id, place.turn, suffix.ids, drop=suffix.drop)
        return Prompt(place, suffix, sampling, text)

    async def _generate(self, session: Session, call: Call, prompt: Prompt, request: ChatRequest) -> Generation:
        watcher = self._reader.watcher(request, prompt, call.say) if request.stream or request.stops_at_object else None
        generating: asyncio.Task[Generation] = asyncio.ensure_future(
            self._engines.generate(
                prompt.text,
                prompt.sampling.params,
                tokens=prompt.tokens,
                key=session.session_id,
                on_tokens=watcher,
                experts_from=max(0, prompt.tokens - len(prompt.suffix.ids) - 1),
            )
        )
        call.generating(generating)
        try:
            return await generating
        except asyncio.CancelledError:
            if not generating.cancelled():
                raise
            if session.deleted:
                raise unknown_session(session.session_id) from None
            raise ApiError(499, "nobody waited for this answer any longer", code="abandoned") from None

    def _count(self, session: Session, **counts: int) -> None:
        session.counts.update(counts)
        self._counts.update(counts)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(60.0, self._idle_seconds / 4))
            try:
                self._counts["sessions_expired"] += await self._sessions.expire()
            except sqlite3.Error as error:
                log.error("idle sessions could not be expired: %s", error)


def _alike(session: Session, prompt: Prompt, request: ChatRequest) -> list[Turn]:
    """Turns that answered the very tokens of this prompt, under the same parameters and constraints."""
    siblings = session.tree.children(prompt.place.turn)
    ids = pack_ids(prompt.suffix.ids) if siblings else b""
    return [
        turn
        for turn in siblings
        if turn.prompt_bytes == ids
        and (turn.caller, turn.drop) == (prompt.place.caller, prompt.suffix.drop)
        and sampling(turn.output) == prompt.sampling.params
        and session.receipts[turn.number].constrained == request.constrained
    ]
