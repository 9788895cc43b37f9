"""The sessions of a server and what can be done with them, without HTTP on the client's side.

Invariant: what a session holds is read here, and changed by its turns alone (turn.py).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.process import tracing
from miles_lite.process.json_types import Json, JsonObject
from miles_lite.sample import Sample
from miles_lite.session.counters import Counters
from miles_lite.session.engine.engine_client import EngineCalls
from miles_lite.session.history import forks
from miles_lite.session.history.match import Matcher
from miles_lite.session.history.time_spent import time_spent
from miles_lite.session.history.tree import Tree, describe
from miles_lite.session.history.turn_record import Turn
from miles_lite.session.http.prometheus import Metrics
from miles_lite.session.journal.store import Journal
from miles_lite.session.opening import parse_turns
from miles_lite.session.samples.audit import MISMATCH, mismatches
from miles_lite.session.samples.collect import Plan, collect
from miles_lite.session.samples.timelines import appender
from miles_lite.session.samples.training_trace import encode_training_trace
from miles_lite.session.sessions import Sessions
from miles_lite.session.turn import Turns
from miles_lite.tito import Tito

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
        self._tito, self._plan = tito, Plan.of(options, appender(tito))
        self._compares = options.session_compare_template
        self._detects_snap = options.detect_timeline_snap
        self._idle_seconds = options.session_idle_seconds
        self.sessions = Sessions(
            journal,
            matcher=matcher,
            idle_seconds=options.session_idle_seconds,
            resident_bytes=int(options.session_memory_gb * 1e9),
        )
        self._counts = Counters()
        self.metrics = Metrics(self.stats)
        self.turns = Turns(
            tito,
            engines,
            self.sessions,
            options=options,
            context_length=context_length,
            counts=self._counts,
            observe=self.metrics.turn_seconds.observe,
        )
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.sessions.open()
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """End what runs. Idempotent."""
        calls = [call for session in self.sessions.resident() for call in session.calls]
        tasks: list[asyncio.Task[Any] | None] = [self._sweeper, *(call.task for call in calls)]
        ending = [task for task in tasks if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self.turns.off_loop.close()

    async def create(
        self, sampling: JsonObject, *, turns: Json = None, traced: Mapping[str, str] = tracing.NOWHERE
    ) -> str:
        """Open a session, with the `turns` that another one told. `traced`: what names the span that its turns belong
        to. Raises ApiError 400."""
        entries = parse_turns(turns, caller=self.turns.default_caller, stop_ids=self._tito.stop_ids)
        session = await self.sessions.create(sampling, traced=traced)
        for entry in entries:
            await self.sessions.commit(session, entry)
        session.tree.restored = session.retries.restored = len(entries)
        self._counts.add({"sessions_created": 1})
        return session.session_id

    async def delete(self, session_id: str) -> None:
        """Forget the session and cancel its calls. Raises ApiError 404."""
        session = await self.sessions.delete(session_id)
        for call in session.calls:
            call.abort()

    async def describe(self, session_id: str) -> JsonObject:
        """For a session that nobody opened, what an empty one has."""
        session = await self.sessions.find(session_id)
        if session is None:
            return {"session_id": session_id, "turns": [], "leaves": [], "counts": {}}
        leaves = [turn.number for turn in session.tree.leaves()]
        about: JsonObject = {"session_id": session_id, "turns": describe(session.tree), "leaves": leaves}
        about |= {"counts": dict(session.counts), "seconds": time_spent(session.tree)}
        about |= {"recreated": True} if session.recreated else {}
        about |= {} if session.failure is None else {"failure": asdict(session.failure)}
        return about | ({"forks": forks.all_forks(session.tree)} if self._detects_snap else {})

    async def samples(self, session_id: str, *, max_seq_len: int | None) -> list[Sample]:
        """No samples for a session that nobody opened. Raises ApiError 404, 422."""
        session = await self.sessions.find(session_id)
        if session is None:
            return []
        metadata: JsonObject = {"session_id": session_id, "counts": dict(session.counts)}
        metadata |= {"recreated": True} if session.recreated else {}
        gather = partial(collect, session.tree.copy(), self._plan, max_seq_len=max_seq_len, metadata=metadata)
        samples = await self.turns.off_loop.run(gather, heavy=True)
        for sample in samples if self._compares else ():
            leaf = session.tree.turns[sample.metadata["leaf"]]
            sample.metadata[MISMATCH] = await asyncio.to_thread(mismatches, self._tito, leaf)
        return samples

    async def tree(self, session_id: str) -> Tree:
        """The session's turns, to be read; none for a session that nobody opened. Raises ApiError 404."""
        session = await self.sessions.find(session_id)
        return self.sessions.empty_tree() if session is None else session.tree

    async def kept(self, session_id: str) -> list[Turn]:
        """The leaves that collecting keeps. Raises ApiError 404."""
        return self._plan.kept(await self.tree(session_id))

    async def training_trace(self, session_id: str) -> bytes:
        """In JSON. Raises ApiError 404."""
        tree = (await self.tree(session_id)).copy()
        encode = partial(encode_training_trace, tree, self._plan.kept(tree), mask_inexact=self._plan.mask_inexact)
        return await self.turns.off_loop.run(encode, heavy=True)

    def live(self) -> int:
        return self.sessions.live()

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is there now: sessions, those in memory, their bytes, and calls."""
        calls = sum(call.running for session in self.sessions.resident() for call in session.calls)
        return {name: float(count) for name, count in self._counts.items()} | {
            "sessions": float(self.live()),
            "sessions_resident": float(len(self.sessions.resident())),
            "sessions_recreated": float(self.sessions.recreated),
            "session_bytes": float(self.sessions.bytes),
            "calls": float(calls),
        }

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(60.0, self._idle_seconds / 4))
            try:
                self._counts.add({"sessions_expired": await self.sessions.expire()})
            except sqlite3.Error as error:
                log.error("idle sessions could not be expired: %s", error)
