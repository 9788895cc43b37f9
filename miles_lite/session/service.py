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
from miles_lite.session import linear
from miles_lite.session.caller import caller_of
from miles_lite.session.collect import collect
from miles_lite.session.engine_calls import EngineCalls, Generation
from miles_lite.session.errors import ApiError, bad_request, unknown_session
from miles_lite.session.exchange import ChatAnswer, ChatRequest, Delta, Voice
from miles_lite.session.forks import fork_of, forks, report
from miles_lite.session.grammar import grammar
from miles_lite.session.match import Matcher
from miles_lite.session.sampling import Sampling, resolve
from miles_lite.session.tree import Output, Place, Tree, Turn, describe
from miles_lite.tito import RenderError, Suffix, SuffixError, Tito

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
class _Prompt:
    """A request placed in the tree: `ids` is the whole context, `suffix` what this turn adds to it."""

    place: Place
    suffix: Suffix
    ids: np.ndarray
    sampling: Sampling


class Service:
    """All sessions of one server."""

    def __init__(
        self, tito: Tito, engines: EngineCalls, *, options: config.Session, matcher: Matcher, context_length: int
    ) -> None:
        self._tito, self._engines, self._matcher = tito, engines, matcher
        self._roles = frozenset({"tool", *options.tito_allowed_append_roles})
        self._linear = options.use_session_server == "v1"
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
        return about | ({"forks": forks(session.tree)} if self._detects_snap else {})

    def samples(self, session_id: str, *, max_seq_len: int | None) -> list[Sample]:
        session = self._session(session_id)
        samples = collect(session.tree, max_seq_len=max_seq_len)
        for sample in samples:
            sample.metadata |= {"session_id": session_id, "counts": dict(session.counts)}
        return samples

    def tree(self, session_id: str) -> Tree:
        """The session's turns, to be read. Raises ApiError 404."""
        return self._session(session_id).tree

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
        self._count_fork(session, turn)
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
        return len(self._context(session, request)[2])

    def _place(self, session: Session, request: ChatRequest) -> _Prompt:
        """Attach the request and build its ids; reads only."""
        place, suffix, ids = self._context(session, request)
        sampling = resolve(
            session.sampling,
            request.body,
            client_chooses=self._client_chooses,
            prompt_tokens=len(ids),
            context_length=self._context_length,
        )
        sampling.params.update(
            grammar(
                request.constraint,
                tools=request.callable_tools,
                parser=self._tito.parser,
                in_reasoning=suffix.opens_reasoning,
            )
        )
        return _Prompt(place, suffix, ids, sampling)

    def _context(self, session: Session, request: ChatRequest) -> tuple[Place, Suffix, np.ndarray]:
        """Where the request belongs, what it adds there, and the ids of both. Raises ApiError."""
        tree, messages, caller = session.tree, request.messages, caller_of(request.agent, request.tools)
        if self._linear:
            place = linear.place(tree, messages, caller, allowed=self._roles)
        else:
            place = tree.attach(messages, caller)
        try:
            place, suffix = self._suffix(session, request, place)
        except RenderError as error:
            raise bad_request(f"the chat template refuses these messages: {error}", param="messages") from error
        return place, suffix, tree.context(place.turn, suffix.drop, suffix=suffix.ids)

    def _suffix(self, session: Session, request: ChatRequest, place: Place) -> tuple[Place, Suffix]:
        """The suffix at `place`, or the whole conversation as a new root where nothing else is proved."""
        reason = "first" if not session.tree.turns else "diverged"
        if place.turn is not None:
            appended = request.messages[place.matched :]
            roles = {"system" if message["role"] == "developer" else message["role"] for message in appended}
            if roles <= self._roles and self._tito.proved(sorted(roles), request.options):
                try:
                    history = session.tree.history(place.turn)
                    stop = place.turn.output.stop
                    suffix = self._tito.append(
                        history, appended, stop=stop, tools=request.tools, options=request.options
                    )
                    return place, suffix
                except SuffixError as error:
                    reason, why = "no_suffix", str(error)
            else:
                reason, why = "role", f"the roles {', '.join(sorted(roles))} are not proved for this template"
            if self._linear:
                raise bad_request(f"these messages cannot be appended: {why}", param=f"messages[{place.matched}]")
        suffix = self._tito.first(request.messages, tools=request.tools, options=request.options)
        return Place(None, 0, place.caller, root=reason), suffix

    def _count_fork(self, session: Session, turn: Turn) -> None:
        """Count why the turn begins a root, and why it forked, if it did."""
        if turn.root:
            self._count(session, **{f"roots_{turn.root}": 1})
        if fork := fork_of(session.tree, turn):
            self._count(session, forks=1, **{f"forks_{fork.reason}": 1})
            if self._detects_snap:
                report(session.session_id, fork)

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
