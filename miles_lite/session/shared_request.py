"""One request on its way to any number of listeners: the clients that sent it, and sent it again.

Invariant: a call generates at most once, whoever listens. It ends with an answer, with an error, or, when nobody has
listened for its grace time, by being let go; what was said is kept for late listeners until a client has the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from xxhash import xxh3_128, xxh3_128_digest

from miles_lite.session.dialects import Stamp
from miles_lite.session.dialects.request import ChatAnswer, Delta
from miles_lite.session.http.headers import header
from miles_lite.session.off_loop import HEAVY_BYTES

OnDelta = Callable[[Delta], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ask:
    """Which request this is: `identity` is the same for the same bytes, route and idempotency key.

    `keyed`: it came with an Idempotency-Key. `retried`: the client says that it sends it again. `fresh` bytes of it
    were not seen before.
    """

    identity: bytes
    keyed: bool = False
    retried: bool = False
    fresh: int = 0

    @classmethod
    def of(cls, raw: bytes, path: str, headers: Mapping[str, str], *, fresh: int) -> Ask:
        """The same bytes to the same route with the same idempotency key are the same request."""
        key = header(headers, "Idempotency-Key")
        digest = xxh3_128(f"{path}\0{key}\0".encode())
        digest.update(raw)
        retries = headers.get("X-Stainless-Retry-Count", "")
        retried = retries.isascii() and retries.isdigit() and bool(retries.strip("0"))
        return cls(digest.digest(), keyed=bool(key), retried=retried, fresh=fresh)

    def choice(self, number: int) -> Ask:
        """The request for one of several answers to it."""
        return replace(self, identity=xxh3_128_digest(self.identity + number.to_bytes(2))) if number else self

    @property
    def heavy(self) -> bool:
        return self.fresh > HEAVY_BYTES


class Call:
    """A request while it is answered, and until its answer is delivered; `turn` is the number of the turn it made.

    `prompt_tokens` is 0 until the request has its place.
    """

    def __init__(self, identity: bytes, stamp: Stamp, *, grace: float, release: Callable[[Call], None]) -> None:
        """`release` is told once, when this call need not be remembered any longer. `grace` is in seconds."""
        self.identity, self.stamp = identity, stamp
        self.listeners = 0
        self.delivered = False
        self.turn: int | None = None
        self.prompt_tokens = 0
        self.task: asyncio.Task[ChatAnswer] | None = None
        self._generation: asyncio.Task[object] | None = None
        self._aborted = False
        self._grace, self._release = grace, release
        self._deltas: list[Delta] = []
        self._grown = asyncio.Event()
        self._outcome: asyncio.Future[ChatAnswer] = asyncio.get_running_loop().create_future()
        self._outcome.add_done_callback(lambda outcome: self._grown.set())

    @property
    def running(self) -> bool:
        return not self._outcome.done()

    def run(self, answering: Coroutine[Any, Any, ChatAnswer]) -> asyncio.Task[ChatAnswer]:
        """Answer in a task of its own, which no client's leaving ends."""
        self.task = asyncio.get_running_loop().create_task(answering)
        self.task.add_done_callback(self._ended)
        return self.task

    def finish(self, answer: ChatAnswer) -> None:
        """The answer is there."""
        if self.running:
            self._outcome.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """There will be no answer, and nothing to remember."""
        if self.running:
            self._outcome.set_exception(error)
            self._outcome.exception()
            self._release(self)

    async def stream(self, delta: Delta) -> None:
        """More of the answer is there."""
        self._deltas.append(delta)
        self._grown.set()

    @contextmanager
    def listener(self) -> Iterator[None]:
        """While a client is there. When the last one leaves without the answer, the grace time begins."""
        self.listeners += 1
        try:
            yield
        finally:
            self.listeners -= 1
            if self.listeners == 0 and not self.delivered and not self._failed():
                asyncio.get_running_loop().call_later(self._grace, self._let_go)

    async def answer(self, on_delta: OnDelta | None = None) -> ChatAnswer:
        """The answer, once it is there; `on_delta` is given everything that is streamed, from the beginning. Raises
        ApiError."""
        given = 0
        while on_delta is not None:
            for delta in self._deltas[given:]:
                given += 1
                await on_delta(delta)
            if given == len(self._deltas):
                if not self.running:
                    break
                self._grown.clear()
                await self._grown.wait()
        return await asyncio.shield(self._outcome)

    def deliver(self) -> None:
        """The whole answer has been written out to a client."""
        if not self.delivered:
            self.delivered = True
            self._release(self)

    def abort(self) -> None:
        """Stop generating, or do not begin. A reply that the engine has finished is kept."""
        self._aborted = True
        if self._generation is not None:
            self._generation.cancel()

    def generating(self, generation: asyncio.Task[object]) -> None:
        """What `abort` cancels."""
        self._generation = generation
        if self._aborted:
            generation.cancel()

    def _let_go(self) -> None:
        if self.listeners == 0 and not self.delivered:
            self.abort()
            self._release(self)

    def _ended(self, task: asyncio.Task[ChatAnswer]) -> None:
        if task.cancelled():
            self._outcome.cancel()
        elif error := task.exception():
            self.fail(error)
        else:
            self.finish(task.result())

    def _failed(self) -> bool:
        return not self.running and (self._outcome.cancelled() or self._outcome.exception() is not None)
