"""Generation by token ids through the router's /generate, retried on other engines while that can help.

Invariant: a `Generation` holds every token the engines sampled for a request, in order, with its logprob and the
version that sampled it. A piece that a weight update cut short is kept and continued from. Every wait is bounded.
"""

from __future__ import annotations

import asyncio
import math
import operator
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
import numpy as np
import orjson

from miles_lite.process import tracing
from miles_lite.process.json_types import Json, JsonMapping, JsonObject, parsed
from miles_lite.session.engine.experts import decode_experts
from miles_lite.session.engine.prompt_json import joined, numbers
from miles_lite.session.errors import ApiError, upstream_failed
from miles_lite.session.history.turn_record import Span

OnTokens = Callable[[np.ndarray], Awaitable[int | None]]
"""Is told of all ids so far, and tells how many of them suffice; None for more."""

_NO_IDS, _NO_LOGPROBS = np.empty(0, np.int32), np.empty(0, np.float32)
_RETRIED = (429, 502, 503, 504)
_BUSY = (429, 503)
"""Of these Retry-After tells how long; after the others, which are about one engine, another may answer at once."""
NO_WORKER = "No worker available"
"""What the Rust gateway says with a 404 while it starts and knows no engine yet."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(slots=True)
class Generation:
    """Output ids (int32), natural-log probabilities (float32) under the sampling distribution (logits / temperature),
    version spans.

    `experts` are rows of routed experts, one array per engine that had a part in it. `prefill`: seconds until engines
    had the first tokens of their parts, where they say.
    """

    ids: np.ndarray = field(default_factory=lambda: _NO_IDS)
    logprobs: np.ndarray = field(default_factory=lambda: _NO_LOGPROBS)
    spans: list[Span] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)
    finish: JsonMapping = field(default_factory=dict)
    cached_tokens: int = 0
    retries: int = 0
    version: int = 0
    prefill: float | None = None

    @property
    def finish_reason(self) -> str:
        return str(self.finish.get("type", ""))


class _Retry(Exception):
    """This attempt brought nothing (more); another may."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class EngineCalls:
    """The one HTTP client of a session server. Made in its event loop."""

    def __init__(self, router_url: str, *, retry_seconds: float, call_seconds: float, expert_layers: int = 0) -> None:
        """`call_seconds` bounds one attempt; `retry_seconds` the time from a first failure to giving up.

        With `expert_layers` routed experts are asked for, and required.
        """
        self._expert_layers = expert_layers
        self._url = router_url.rstrip("/") + "/generate"
        self._retry_seconds = retry_seconds
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=call_seconds, connect=min(30.0, call_seconds)),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> EngineCalls:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def generate(
        self,
        prompt: bytes,
        params: JsonMapping,
        *,
        tokens: int,
        key: str,
        on_tokens: OnTokens | None = None,
        experts_from: int = 0,
    ) -> Generation:
        """Sample after `prompt`, so many `tokens` as JSON numbers with commas between them.

        With `on_tokens` the engine streams, and is left as soon as some of the ids suffice; not so where routed experts
        are asked for, which come with the last token.
        Routed experts are those of the tokens from `experts_from` on.

        Raises ApiError: 400 for what engines refuse, 502 when none answers in time.
        """
        done = Generation()
        deadline, pause = math.inf, _FIRST_PAUSE
        while True:
            before = len(done.ids)
            try:
                with tracing.span("engine request", prompt_tokens=tokens + before, attempt=done.retries) as note:
                    await self._attempt(done, prompt, tokens, params, key, on_tokens, experts_from)
                    note(sampled_tokens=len(done.ids) - before, finish_reason=done.finish_reason, version=done.version)
                return done
            except _Retry as retry:
                done.retries += 1
                _cover(done)
                if len(done.ids) > before:
                    deadline, pause = math.inf, _FIRST_PAUSE
                    continue
                wait, now = max(pause, retry.after), time.monotonic()
                deadline = min(deadline, now + self._retry_seconds)
                if now + wait > deadline:
                    raise upstream_failed(
                        f"no engine answered within {self._retry_seconds:g} s ({done.retries} attempts): {retry}"
                    ) from retry
                await asyncio.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(
        self,
        done: Generation,
        prompt: bytes,
        tokens: int,
        params: JsonMapping,
        key: str,
        on_tokens: OnTokens | None,
        experts_from: int,
    ) -> None:
        """One request for what is still missing; returns when the generation is complete, raises _Retry when not."""
        left = int(params["max_new_tokens"]) - len(done.ids)
        if left < 1:
            done.finish = {"type": "length", "length": len(done.ids)}
            return
        body = {"sampling_params": {**params, "max_new_tokens": left}, "return_logprob": True}
        routed = experts_from + sum(map(len, done.experts))
        if self._expert_layers:
            body |= {"return_routed_experts": True, "routed_experts_start_len": routed}
        body["stream"] = on_tokens is not None
        headers = {"Content-Type": "application/json", "X-SMG-Routing-Key": key} | tracing.headers()
        try:
            async with self._http.post(self._url, data=_with_ids(body, prompt, done.ids), headers=headers) as response:
                if response.status != 200:
                    raise _refusal(response, await response.text())
                base = len(done.ids)
                async for event in _events(response, streaming=on_tokens is not None):
                    piece = _piece(event)
                    _check_refused(piece.finish)
                    if _take(done, piece, base) and on_tokens is not None:
                        kept = await on_tokens(done.ids)
                        if not self._expert_layers and _ended(done, kept):
                            return
                    if self._expert_layers and done.finish:
                        self._take_experts(done, event, rows=tokens + len(done.ids) - 1 - routed)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise _Retry(str(error) or type(error).__name__) from error
        if done.finish_reason in ("", "abort"):
            raise _Retry(str(done.finish.get("message") or "the generation was cut short"))

    def _take_experts(self, done: Generation, event: JsonMapping, *, rows: int) -> None:
        """An attempt that was cut short may come without; the next one asks from the same token on."""
        payload = event["meta_info"].get("routed_experts")
        if payload is None and done.finish_reason == "abort":
            return
        try:
            done.experts.append(decode_experts(payload, rows=rows, layers=self._expert_layers))
        except ValueError as error:
            raise upstream_failed(f"the engine returned {error}") from error


def _with_ids(body: JsonMapping, prompt: bytes, more: np.ndarray) -> bytes:
    """The request, its `input_ids` being the prompt and `more`. They come first: a long text is copied once."""
    ids = joined(prompt, numbers(more)) if len(more) else prompt
    return b'{"input_ids":[%b],%b' % (ids, orjson.dumps(body)[1:])


def _refusal(response: aiohttp.ClientResponse, text: str) -> Exception:
    message = _message(text)
    if response.status in _RETRIED or (response.status == 404 and NO_WORKER in message):
        after = response.headers.get("Retry-After", "") if response.status in _BUSY else ""
        return _Retry(f"{response.status}: {message}", float(after) if after.isdigit() else 0.0)
    if response.status in (400, 409) and "rollback failed" in message.lower():
        return ApiError(400, f"the engine refused the request: {message}", code="rollback_failed")
    if response.status < 500:
        too_long = "context_length_exceeded" if "context length" in message else None
        return ApiError(400, f"the engine refused the request: {message}", code=too_long)
    return upstream_failed(f"the engine failed with {response.status}: {message}")


def _message(text: str) -> str:
    said = parsed(text, orjson.loads)
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return text[:300] if message is None else str(message)


async def _events(response: aiohttp.ClientResponse, *, streaming: bool) -> AsyncIterator[JsonObject]:
    if not streaming:
        yield _object(await response.read())
        return
    async for line in _lines(response.content):
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            event = _object(line[6:])
            if "error" in event:
                raise _Retry(_message(line[6:].decode()))
            yield event


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length: an event may hold the logprobs, or routed experts, of all tokens."""
    parts: list[bytes] = []
    async for piece in content.iter_any():
        head, *more = piece.split(b"\n")
        parts.append(head)
        for line in more:
            yield b"".join(parts)
            parts = [line]


def _object(data: bytes) -> JsonObject:
    value = parsed(data, orjson.loads)
    if not isinstance(value, dict) or not ("meta_info" in value or "error" in value):
        raise _Retry(f"the engine answered with something else than a generation: {data[:100]!r}")
    return value


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one event says: tokens so far in this attempt, and the ids and logprobs it carries."""

    tokens: int
    ids: np.ndarray
    logprobs: np.ndarray
    finish: JsonMapping
    version: int
    cached_tokens: int
    spans: list[Span]
    prefill: float | None


def _piece(event: JsonMapping) -> _Piece:
    """Raises _Retry for what no engine in its right mind says."""
    try:
        meta = event["meta_info"]
        triples = meta.get("output_token_logprobs") or []
        spans = meta.get("weight_versions") or ()
        return _Piece(
            tokens=operator.index(meta["completion_tokens"]),
            ids=_ids([triple[1] for triple in triples]),
            logprobs=_logprobs([triple[0] for triple in triples]),
            finish=dict(meta.get("finish_reason") or {}),
            version=_version(meta.get("weight_version")),
            cached_tokens=int(meta.get("cached_tokens") or 0),
            spans=[(_version(span["version"]), int(span["start"]), int(span["end"])) for span in spans],
            prefill=_seconds(meta.get("first_token_latency")),
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise _Retry(f"the engine answered with a malformed generation: {error!r}") from error


def _ids(column: list[Json]) -> np.ndarray:
    ids = np.asarray(array("i", column))
    if ids.size and ids.min() < 0:
        raise ValueError(f"token id {ids.min()}")
    return ids


def _logprobs(column: list[Json]) -> np.ndarray:
    return np.asarray(array("f", column))


def _check_refused(finish: JsonMapping) -> None:
    """A stream's status is sent before the engine looks at the request: a refusal is an abort, and its token is none.

    Raises ApiError 400.
    """
    status = finish.get("status_code")
    if finish.get("type") == "abort" and isinstance(status, int) and 400 <= status < 500:
        raise ApiError(400, f"the engine refused the request: {finish.get('message')}")


def _take(done: Generation, piece: _Piece, base: int) -> bool:
    """Add what is new in an event; `base` is how many ids earlier attempts brought. Streams may repeat all ids."""
    new = base + piece.tokens - len(done.ids)
    if new > len(piece.ids):
        raise _Retry(f"the engine sent {len(piece.ids)} logprobs for {new} new tokens")
    if new > 0:
        done.ids = np.concatenate([done.ids, piece.ids[-new:]])
        done.logprobs = np.concatenate([done.logprobs, piece.logprobs[-new:]])
    done.finish, done.version = piece.finish, piece.version
    if done.finish:
        done.cached_tokens = done.cached_tokens or piece.cached_tokens
        if piece.prefill is not None:
            done.prefill = (done.prefill or 0.0) + piece.prefill
        done.spans += [(version, base + start, base + end) for version, start, end in piece.spans]
        _cover(done)
    return new > 0


def _ended(done: Generation, kept: int | None) -> bool:
    """End the generation after its first `kept` tokens, unless it ended itself there, or by the token after them."""
    if kept is None or (done.finish and kept >= len(done.ids) - 1):
        return False
    _cover(done)
    done.ids, done.logprobs = done.ids[:kept], done.logprobs[:kept]
    done.spans = [(version, start, min(end, kept)) for version, start, end in done.spans if start < kept]
    done.finish = {"type": "stop", "matched": None}
    return True


def _cover(done: Generation) -> None:
    """Tokens that no span covers, because a stream broke off, are of the version last heard of."""
    covered = done.spans[-1][2] if done.spans else 0
    if covered < len(done.ids):
        done.spans.append((done.version, covered, len(done.ids)))


def _seconds(said: Json) -> float | None:
    """SGLang says them with --enable-metrics alone."""
    return float(said) if isinstance(said, int | float) and math.isfinite(said) else None


def _version(text: Json) -> int:
    """Engines started by hand report no number; their weights are version 0."""
    return int(text) if str(text).isdigit() else 0
