"""One turn, from a request's bytes to its answer: six steps, in this order, each a call into one room.

    parse     dialects  what the bytes ask for
    place     history   where in the session's tree the request goes on
    tokenise  tito      the ids that it adds there
    generate  engine    what the model samples after them
    commit    journal   the turn, on disk and then in the tree
    answer    dialects  the turn, told in the request's dialect

Invariant: a session's tree changes only by a commit after an engine has answered; a request that fails or is cancelled
leaves it as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.process import tracing
from miles_lite.process.json_types import JsonMapping
from miles_lite.session.counters import Counters
from miles_lite.session.dialects import Dialect, Stamp
from miles_lite.session.dialects.json_reuse import Bodies, Body
from miles_lite.session.dialects.limits import Limits
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest
from miles_lite.session.dialects.unknown_fields import Unknown
from miles_lite.session.engine.engine_client import EngineCalls, Generation
from miles_lite.session.engine.engine_reply import Reader
from miles_lite.session.engine.engine_stream import watcher
from miles_lite.session.engine.prompt import Prompt, Prompter
from miles_lite.session.errors import ApiError, bad_request, unknown_session
from miles_lite.session.history import forks
from miles_lite.session.history.agent_identity import Caller, agent_name, caller_of, hints_of
from miles_lite.session.history.placing import Placed, Placer
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.off_loop import HEAVY_SECONDS, OffLoop
from miles_lite.session.sessions import Session, Sessions
from miles_lite.session.shared_request import Ask, Call
from miles_lite.tito import Tito

log = logging.getLogger(__name__)
T = TypeVar("T")

Answer = Callable[[ChatRequest, Sequence[Call]], Awaitable[T]]
"""Tells a client what its calls answer, one for each answer that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A request to a session, as it came: its bytes, and what its path and headers say beside."""

    session_id: str
    dialect: Dialect
    raw: bytes
    path: str
    headers: Mapping[str, str]
    address: JsonMapping


class Turns:
    """The turns of one server's sessions. `counts` are the server's, `observe` is told the seconds of each turn."""

    def __init__(
        self,
        tito: Tito,
        engines: EngineCalls,
        sessions: Sessions,
        *,
        options: SessionOptions,
        context_length: int,
        counts: Counters,
        observe: Callable[[float], None],
    ) -> None:
        self._tito, self._engines, self._sessions = tito, engines, sessions
        self._counts, self._observe = counts, observe
        self._placer = Placer(
            tito,
            roles=options.tito_allowed_append_roles,
            policy=options.use_session_server,
            context_length=context_length,
        )
        self._prompter = Prompter(sessions.prompts, tito.parser, options.session_client_sampling, context_length)
        self._reader = Reader(tito)
        self._unknown = Unknown(options.session_unknown_fields == "refuse")
        self._reports_forks = options.detect_timeline_snap
        self._grace = options.session_disconnect_grace
        self._template_options = options.template_options
        self.limits = Limits(context_length)
        self.off_loop = OffLoop()

    @property
    def default_caller(self) -> Caller:
        """Who speaks in a request that says nothing of itself."""
        return caller_of(None, None, self._tito.options_read(self._template_options))

    async def run(self, incoming: Incoming, answer: Answer[T]) -> T:
        """What `answer` returns. Raises ApiError, and sqlite3.Error where a session cannot be opened."""
        parent = tracing.NOWHERE
        if tracing.collected() and not (parent := tracing.carried(incoming.headers)):
            session = await self._sessions.find(incoming.session_id)
            parent = parent if session is None else session.traced
        with tracing.span("turn", parent=parent, session=incoming.session_id, path=incoming.path):
            return await self._run(incoming, answer)

    async def _run(self, incoming: Incoming, answer: Answer[T]) -> T:
        request, ask, body = await self._parse(incoming)  # 1. parse
        if request.prefilled:
            raise bad_request(
                "the conversation ends in the assistant's own words, and going on from them (prefill) is not "
                "served: end it with a user's message or a tool's result",
                param="messages",
            )
        calls = [
            await self.call(incoming.session_id, request, ask.choice(number), prefix=incoming.dialect.prefix)
            for number in range(request.n)
        ]
        with ExitStack() as listening:
            for call in calls:
                listening.enter_context(call.listener())
            told = await answer(request, calls)  # 6. answer
        if not ask.heavy:
            self._keep(incoming.session_id, body, request)
        return told

    async def call(self, session_id: str, request: ChatRequest, ask: Ask, *, prefix: str) -> Call:
        """The call that answers `request`: of a repeated request the one that is there, else a fresh one.

        `prefix` begins the id of a fresh answer. Raises ApiError 404 when the session was deleted.
        """
        session = await self._sessions.obtain(session_id)
        request = session.with_previous(request)
        call = session.retries.call_of(ask)
        if call is not None:
            self._count(session, retries_joined=1)
            return call
        turn = session.retries.turn_of(ask, session.tree, since=time.time() - self._grace)
        receipt = None if turn is None else session.receipts[turn.number]
        stamp = Stamp(prefix + uuid.uuid4().hex, int(time.time())) if receipt is None else receipt.stamp
        call = Call(ask.identity, stamp, grace=self._grace, release=session.retries.over)
        session.calls.append(call)
        if turn is None or receipt is None:
            call.run(self._turn(session, call, request, ask)).add_done_callback(session.ended)
        else:
            self._count(session, retries_replayed=1)
            call.turn, call.prompt_tokens = turn.number, turn.end - turn.output.size
            call.finish(self._reader.answer(request, turn, receipt))
        return call

    async def count_tokens(self, incoming: Incoming) -> int:
        """Length of the context that the request would be answered in. Raises ApiError."""
        request, ask, _ = await self._parse(incoming)
        session = await self._sessions.find(incoming.session_id)
        tree = self._sessions.empty_tree() if session is None else session.tree
        return (await self._placed(tree, request, heavy=ask.heavy)).tokens

    async def _turn(self, session: Session, call: Call, request: ChatRequest, ask: Ask) -> ChatAnswer:
        """The steps between the request and its answer. Raises ApiError."""
        placed = await self._placed(session.tree, request, heavy=ask.heavy)  # 2. place, 3. tokenise
        prompt = self._prompter.prompt(session.session_id, session.sampling, request, placed)
        call.prompt_tokens = prompt.tokens
        _trace_tools(placed.place, request)
        superseded = session.retries.superseded_by(ask, session.same_requests(placed, prompt.sampling.params, request))
        started = time.time()
        prompt, generation = await self._generated(session, call, prompt, request)  # 4. generate
        entry = self._reader.entry(request, prompt, generation, started=started, call=call, superseded=superseded)
        turn, counts = await self._sessions.commit(session, entry)  # 5. commit
        self._sessions.prompts.keep(session.session_id, turn, prompt.text)
        self._counts.add(counts)
        if self._reports_forks:
            forks.report(session.session_id, session.tree, turn)
        call.turn = turn.number
        self._observe(turn.output.finished - started)
        return self._reader.answer(request, turn, entry.receipt)

    async def _parse(self, incoming: Incoming) -> tuple[ChatRequest, Ask, Body]:
        session = self._sessions.peek(incoming.session_id)
        body = Body(incoming.raw, *((session.bodies, session.tree.sent()) if session else (Bodies(),)))
        ask = Ask.of(incoming.raw, incoming.path, incoming.headers, fresh=body.fresh)

        def parse() -> ChatRequest:
            fields = body.parse()
            request = incoming.dialect.parse({**fields, **incoming.address} if incoming.address else fields)
            if ask.heavy:
                self.limits.check(request)
                self._keep(incoming.session_id, body, request)
            return replace(
                request,
                options=self._tito.options_read({**self._template_options, **request.options}),
                agent=agent_name(incoming.headers, fields),
                hints=hints_of(incoming.headers),
            )

        request = await self.off_loop.run(parse, heavy=ask.heavy)
        self._unknown.check(request.unknown)
        return request, ask, body

    async def _placed(self, tree: Tree, request: ChatRequest, *, heavy: bool) -> Placed:
        """Reads only. A tree where that took long is not asked on the event loop."""

        def work() -> Placed:
            began = time.thread_time()
            try:
                place = self._placer.place(tree, request)
                return self._placer.tokenise(tree, request, place)
            finally:
                tree.slow = time.thread_time() - began > HEAVY_SECONDS

        return await self.off_loop.run(work, heavy=heavy or tree.slow)

    async def _generated(
        self, session: Session, call: Call, prompt: Prompt, request: ChatRequest
    ) -> tuple[Prompt, Generation]:
        """What was sampled, and after which prompt: an engine that cannot go on from a turn is asked anew."""
        try:
            return prompt, await self._generate(session, call, prompt, request)
        except ApiError as error:
            if error.code != "rollback_failed" or prompt.place.turn is None:
                raise
            log.warning("the engine could not go on from turn %d and is asked anew", prompt.place.turn.number)
        whole = await self.off_loop.run(lambda: self._placer.reanchor(request), heavy=True)
        prompt = self._prompter.prompt(session.session_id, session.sampling, request, whole)
        return prompt, await self._generate(session, call, prompt, request)

    async def _generate(self, session: Session, call: Call, prompt: Prompt, request: ChatRequest) -> Generation:
        watched = request.stream or request.stops_at_object
        generating: asyncio.Task[Generation] = asyncio.ensure_future(
            self._engines.generate(
                prompt.text,
                prompt.sampling.params,
                tokens=prompt.tokens,
                key=session.session_id,
                on_tokens=watcher(self._tito, request, prompt, call.stream) if watched else None,
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

    def _keep(self, session_id: str, body: Body, request: ChatRequest) -> None:
        """The session's next body may begin like this one."""
        if (session := self._sessions.peek(session_id)) is not None:
            body.keep(session.bodies, request.messages)

    def _count(self, session: Session, **counts: int) -> None:
        session.counts.add(counts)
        self._counts.add(counts)


def _trace_tools(place: Place, request: ChatRequest) -> None:
    """Where the request brings results: the harness ran tools from the end of the turn that called them to now."""
    if not tracing.collected() or place.turn is None:
        return
    results = [message for message in request.messages[place.matched :] if message["role"] == "tool"]
    if results:
        names = ", ".join(str(call["function"]["name"]) for call in place.turn.reply.get("tool_calls") or ())
        tracing.past("tool", place.turn.output.finished, time.time(), names=names, results=len(results))
