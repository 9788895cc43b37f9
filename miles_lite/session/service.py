"""Sessions and what can be done with them, without HTTP on the client's side.

Invariant: a session's tree changes only by a commit after an engine has answered; a request that fails or is cancelled
leaves it as it was.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miles_lite import config
from miles_lite.sample import Sample
from miles_lite.session import forks
from miles_lite.session.collect import Plan, collect
from miles_lite.session.engine_calls import EngineCalls, Generation
from miles_lite.session.errors import ApiError, unknown_session
from miles_lite.session.exchange import ChatAnswer, ChatRequest, Delta, Voice
from miles_lite.session.grammar import grammar
from miles_lite.session.match import Matcher
from miles_lite.session.placing import Placed, Placer
from miles_lite.session.sampling import Sampling, resolve
from miles_lite.session.timelines import appender
from miles_lite.session.tree import Output, Tree, Turn, describe
from miles_lite.tito import Tito

OnDelta = Callable[[Delta], Awaitable[None]]


@dataclass(slots=True)
class Session:
    """One agent's conversation(s); `sampling` is the run's, empty when the client chooses."""

    session_id: str
    tree: Tree
    sampling: dict[str, Any]
    calls: set[asyncio.Task[Generation]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Prompt(Placed):
    """A request placed in the tree, and how it is sampled."""

    sampling: Sampling


class Service:
    """All sessions of one server."""

    def __init__(
        self, tito: Tito, engines: EngineCalls, *, options: config.Session, matcher: Matcher, context_length: int
    ) -> None:
        self._tito, self._engines, self._matcher = tito, engines, matcher
        self._plan = Plan.of(options, appender(tito))
        self._placer = Placer(tito, roles=options.tito_allowed_append_roles, policy=options.use_session_server)
        self._detects_snap = options.detect_timeline_snap == "true"
        self._client_chooses = options.session_client_sampling
        self._context_length = context_length
        self._sessions: dict[str, Session] = {}
        self._counts: Counter[str] = Counter()

    def create(self, sampling: dict[str, Any]) -> str:
        session = Session(uuid.uuid4().hex, Tree(self._matcher), sampling)
        self._sessions[session.session_id] = session
        self._counts["sessions_created"] += 1
        return session.session_id

    def delete(self, session_id: str) -> None:
        """Forget the session and cancel its calls. Raises ApiError 404."""
        session = self._session(session_id)
        del self._sessions[session_id]
        for call in session.calls:
            call.cancel()

    def describe(self, session_id: str) -> dict[str, Any]:
        session = self._session(session_id)
        turns = describe(session.tree)
        leaves = [turn.number for turn in session.tree.leaves()]
        about = {"session_id": session_id, "turns": turns, "leaves": leaves, "counts": dict(session.counts)}
        return about | ({"forks": forks.all_forks(session.tree)} if self._detects_snap else {})

    def samples(self, session_id: str, *, max_seq_len: int | None) -> list[Sample]:
        session = self._session(session_id)
        metadata = {"session_id": session_id, "counts": dict(session.counts)}
        return collect(session.tree, self._plan, max_seq_len=max_seq_len, metadata=metadata)

    def tree(self, session_id: str) -> Tree:
        """The session's turns, to be read. Raises ApiError 404."""
        return self._session(session_id).tree

    def kept(self, session_id: str) -> list[Turn]:
        """The leaves that collecting keeps. Raises ApiError 404."""
        return self._plan.kept(self._session(session_id).tree)

    def live(self) -> int:
        return len(self._sessions)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and `sessions`, `calls`: what is there now."""
        calls = sum(len(session.calls) for session in self._sessions.values())
        return {name: float(count) for name, count in self._counts.items()} | {
            "sessions": float(self.live()),
            "calls": float(calls),
        }

    async def chat(
        self, session_id: str, request: ChatRequest, *, answer_id: str, on_delta: OnDelta | None = None
    ) -> ChatAnswer:
        """Run one turn; with `on_delta` what is certain of the reply is handed out as it comes. Raises ApiError."""
        session = self._session(session_id)
        prompt = self._place(session, request)
        started = time.monotonic()
        voice = Voice(self._tito.stream(tools=request.callable_tools, in_reasoning=prompt.suffix.opens_reasoning))
        watcher = None if on_delta is None else _watcher(self._tito, voice, on_delta, prompt.sampling.stop)
        generation = await self._generate(session, prompt, watcher)
        stop, text = self._read(generation)
        in_reasoning = prompt.suffix.opens_reasoning
        reply = self._tito.parser.parse(text, tools=request.callable_tools, in_reasoning=in_reasoning)
        voice.feed(text)
        message = voice.message(reply)
        output = Output(
            ids=np.asarray(generation.ids, np.int32),
            logprobs=np.asarray(generation.logprobs, np.float32),
            spans=tuple(generation.spans),
            temperature=prompt.sampling.temperature,
            finish_reason=generation.finish_reason,
            stop=stop,
            started=started,
            finished=time.monotonic(),
        )
        turn = session.tree.commit(
            prompt.place,
            request.messages[prompt.place.matched :],
            reply=message,
            prompt_ids=prompt.suffix.ids,
            drop=prompt.suffix.drop,
            output=output,
        )
        self._count(session, **forks.counts(session.tree, turn))
        if self._detects_snap:
            forks.report(session_id, session.tree, turn)
        self._count(session, turns=1, prompt_tokens=len(prompt.ids), completion_tokens=len(generation.ids))
        self._count(session, sampling_overridden=prompt.sampling.overridden, engine_retries=generation.retries)
        return ChatAnswer(
            answer_id=answer_id,
            created=int(time.time()),
            model=request.model,
            message=message,
            finish_reason="tool_calls" if reply.tool_calls and output.finish_reason == "stop" else output.finish_reason,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(generation.ids),
            cached_tokens=generation.cached_tokens,
            logprobs=self._token_logprobs(generation) if request.logprobs else None,
            lead=voice.lead,
            stop_sequence=matched if isinstance(matched := generation.finish.get("matched"), str) else None,
        )

    def count_tokens(self, session_id: str, request: ChatRequest) -> int:
        """Length of the context that `request` would be answered in. Raises ApiError."""
        session = self._session(session_id)
        return len(self._placer.place(session.tree, request).ids)

    def _place(self, session: Session, request: ChatRequest) -> _Prompt:
        """Attach the request and build its ids; reads only."""
        placed = self._placer.place(session.tree, request)
        sampling = resolve(
            session.sampling,
            request.body,
            client_chooses=self._client_chooses,
            prompt_tokens=len(placed.ids),
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
        return _Prompt(placed.place, placed.suffix, placed.ids, sampling)

    async def _generate(self, session: Session, prompt: _Prompt, watcher: Any) -> Generation:
        call = asyncio.ensure_future(
            self._engines.generate(prompt.ids, prompt.sampling.params, key=session.session_id, on_tokens=watcher)
        )
        session.calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if session.session_id in self._sessions:
                raise
            raise ApiError(404, "the session was deleted while this request ran", code="session_not_found") from None
        finally:
            session.calls.discard(call)

    def _read(self, generation: Generation) -> tuple[int | None, str]:
        """(the stop token if it was sampled, the text without what stopped it)."""
        matched = generation.finish.get("matched") if generation.finish_reason == "stop" else None
        ids = generation.ids
        if isinstance(matched, str):
            text = self._tito.encoder.decode(ids)
            return None, text[: text.rfind(matched)] if matched in text else text
        sampled = bool(ids) and generation.finish_reason == "stop" and ids[-1] == matched
        return (ids[-1], self._tito.encoder.decode(ids[:-1])) if sampled else (None, self._tito.encoder.decode(ids))

    def _token_logprobs(self, generation: Generation) -> list[tuple[str, float]]:
        texts = [self._tito.encoder.decode([token]) for token in generation.ids]
        return list(zip(texts, generation.logprobs, strict=True))

    def _count(self, session: Session, **counts: int) -> None:
        session.counts.update(counts)
        self._counts.update(counts)

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise unknown_session(session_id)
        return session


def _watcher(tito: Tito, voice: Voice, on_delta: OnDelta, stops: list[str]) -> Callable[[list[int]], Awaitable[None]]:
    """Turns ids so far into what can be shown of them: no stop token, nothing that may become a stop string."""

    written = tito.encoder.stream()

    async def watch(ids: list[int]) -> None:
        text = written.feed(ids[:-1] if ids[-1] in tito.stop_ids else ids)
        for stop in stops:
            text = text.partition(stop)[0]
        held = max((_overlap(text, stop) for stop in stops), default=0)
        if delta := voice.feed(text[: len(text) - held]):
            await on_delta(delta)

    return watch


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
