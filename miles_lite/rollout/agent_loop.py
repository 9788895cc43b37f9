"""The event loop that agent functions run in: in a thread of its own, so that the worker goes on whatever they do.

Agents share one loop, since their modules share clients and semaphores. Its owner keeps the time from another loop.
Invariant: a call of `run` ends, with a value or an Exception, at most GRACE seconds after its time. A function that
raises CancelledError, calls sys.exit, forks or blocks the loop ends its own call alone: the time for which another one
blocks does not count, and a loop that cannot be had back is replaced by a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from miles_lite.errors import Where
from miles_lite.process.interrupting import Interrupted, interrupt

log = logging.getLogger(__name__)
T = TypeVar("T")

SLICE_SECONDS = 0.5
BEAT_SECONDS, STILL_SECONDS = 0.25, 2.0
"""How often a loop shows that it turns, and how long it may not before it is blocked."""
GRACE = 5.0
"""Seconds to end after one was told to."""


class Caller:
    """One call of `AgentLoop.run`."""


CALLER: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)
"""Whose call the running code belongs to, also in tasks and in asyncio's threads that it starts."""


class AgentError(RuntimeError):
    """What became of a function that did not end as functions do."""


class OutOfTimeError(Exception):
    """A function took longer than it may."""

    where = Where.TIMEOUT


class LoopLostError(RuntimeError):
    """Another function's blocking took the loop away from this one, which may run again."""

    where = Where.CANCELLED


class AgentLoop:
    """Runs functions; owned by another event loop."""

    def __init__(self) -> None:
        self._turning: _Turning | None = None

    async def run(self, work: Callable[[], Awaitable[T]], *, timeout: float) -> T:
        """The value of `work()`. Raises what it raised, OutOfTimeError after `timeout` seconds,
        AgentError, and LoopLostError."""
        if self._turning is None:
            self._turning = _Turning()
        turning, caller = self._turning, Caller()
        call = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_act(work, caller), turning.loop))
        turning.calls[caller] = call
        try:
            if await self._in_time(call, caller, turning, timeout):
                return call.result()
            if not turning.blocked():
                raise OutOfTimeError
            where = turning.where()
            await self._reclaim(turning, blamed=caller)
            raise AgentError(f"it blocked the event loop in {where}: use asyncio.to_thread for what waits")
        finally:
            del turning.calls[caller]
            call.cancel()

    def close(self) -> None:
        """Let the thread end."""
        turning, self._turning = self._turning, None
        if turning is not None:
            turning.end()

    async def _in_time(self, call: asyncio.Future[T], caller: Caller, turning: _Turning, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds, not counting those for which somebody else blocked: another call,
        which its own time ends, or what a call that is over has left behind."""
        left = timeout
        while left > 0:
            began = time.monotonic()
            await asyncio.wait({call}, timeout=min(left, SLICE_SECONDS))
            if call.done():
                return True
            blocker = turning.blocker() if turning.blocked() else None
            if blocker in (None, caller) or turning.ended:
                left -= time.monotonic() - began
            elif blocker not in turning.calls:
                await self._reclaim(turning)
        return False

    async def _reclaim(self, turning: _Turning, *, blamed: Caller | None = None) -> None:
        """Have the loop back from who blocks it, or take a new one; who was in the old one may then run again, but for
        the one that is `blamed`."""
        async with turning.reclaiming:
            if not turning.blocked() or turning.ended:
                return
            where, deadline = turning.where(), time.monotonic() + GRACE
            turning.interrupt()
            while turning.blocked() and time.monotonic() < deadline:
                await asyncio.sleep(BEAT_SECONDS)
            if not turning.blocked():
                return
            turning.end()
        log.error("an agent function blocks in %s and cannot be interrupted: the others get a new event loop", where)
        if self._turning is turning:
            self._turning = None
        for other, waiting in turning.calls.items():
            if other is not blamed and not waiting.done():
                waiting.get_loop().call_soon(_fail, waiting)


class _Turning:
    """One loop and its thread, and the calls in it."""

    def __init__(self) -> None:
        self.calls: dict[Caller, asyncio.Future[Any]] = {}
        self.reclaiming = asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(self._make_task)
        self._callers: weakref.WeakKeyDictionary[asyncio.Task[Any], Caller | None] = weakref.WeakKeyDictionary()
        self._beaten = time.monotonic()
        self.ended = self._warned = False
        self._thread = threading.Thread(target=self._turn, name="agents", daemon=True)
        self._process = os.getpid()
        self._thread.start()
        _TURNING.add(self)

    def blocked(self) -> bool:
        """Whether one function has kept the loop from turning for a while."""
        still = time.monotonic() - self._beaten > STILL_SECONDS
        if still and not self._warned:
            self._warned = True
            log.warning("an agent function blocks its event loop in %s: use asyncio.to_thread", self.where())
        return still

    def blocker(self) -> Caller | None:
        """Whose function runs just now; None when nobody knows."""
        task = asyncio.current_task(self.loop)
        return None if task is None else self._callers.get(task)

    def where(self) -> str:
        """What the thread is doing."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = traceback.extract_stack(frame) if frame is not None else []
        return f"{stack[-1].filename}:{stack[-1].lineno} ({stack[-1].name})" if stack else "a place unknown"

    def interrupt(self) -> None:
        """Raise Interrupted in the thread, as soon as it runs Python code again."""
        interrupt(self._thread.ident or 0)

    def end(self) -> None:
        """Stop turning, when the loop is free to."""
        self.ended = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._beat)
        while not self.ended:
            try:
                self.loop.run_forever()
            except BaseException as error:  # noqa: BLE001 - asyncio lets SystemExit out of the loop; others go on
                if os.getpid() != self._process:
                    os._exit(1)
                log.warning("an agent function's task raised %r in the event loop", error)

    def _beat(self) -> None:
        self._beaten, self._warned = time.monotonic(), False
        self.loop.call_later(BEAT_SECONDS, self._beat)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **given: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **given)
        self._callers[task] = CALLER.get()
        return task

    def leave(self) -> None:
        """In a child that a function forked: it must never turn the loop, whose sockets are its parent's."""
        if threading.get_ident() == self._thread.ident:
            self.loop._ready.clear()  # type: ignore[attr-defined]
            self.loop.call_soon(os._exit, 1)


_TURNING: weakref.WeakSet[_Turning] = weakref.WeakSet()


def _leave_all() -> None:
    for turning in _TURNING:
        turning.leave()


os.register_at_fork(after_in_child=_leave_all)


async def _act(work: Callable[[], Awaitable[T]], caller: Caller) -> T:
    """`work()` as one of `caller`'s. Whatever it raises comes out as an Exception, but for a cancellation from us."""
    CALLER.set(caller)
    task, process = asyncio.current_task(), os.getpid()
    assert task is not None
    running = asyncio.create_task(_awaited(work))
    try:
        return await running
    except asyncio.CancelledError:
        if task.cancelling():
            raise
        raise AgentError("it raised CancelledError, though nobody cancelled it") from None
    except Interrupted:
        raise AgentError("it blocked the event loop and was interrupted") from None
    except BaseException as error:  # SystemExit, and what is to pass any `except Exception`: Rust's panics
        theirs = running.done() and not running.cancelled() and running.exception() is error
        if isinstance(error, Exception) or not theirs:  # nor ours: this coroutine is being closed
            raise
        raise AgentError(f"it raised {error!r}: a rollout ends by returning") from None
    finally:
        if os.getpid() != process:
            os._exit(0)


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _fail(call: asyncio.Future[T]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        call.set_exception(LoopLostError("another agent function blocked the event loop"))
