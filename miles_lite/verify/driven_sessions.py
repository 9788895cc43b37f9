"""Drives sessions of a server and says of each what it went through and whether its tokens are right.

Invariant: a session is judged by what the server reports of it, and by nothing that its client made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.client import SessionClient, SessionError
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.compare import Mismatch, compare
from miles_lite.tito.cut_render import CompareError
from miles_lite.tito.timeline import Added, Timeline, timeline
from miles_lite.verify.chat_client import Chat, ChatError
from miles_lite.verify.driver import Driver, FailureMode, NoToolCall
from miles_lite.verify.plan import Action
from miles_lite.verify.trajectories import TOOLS


@dataclass(slots=True)
class Report:
    """One session. `mismatches` is None when it could not be compared; `error` is (type, text) of what went wrong."""

    index: int
    events: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    tokens: int = 0
    roots: dict[str, int] = field(default_factory=dict)
    mismatches: list[Mismatch] | None = None
    error: tuple[str, str] | None = None

    def as_json(self) -> JsonObject:
        found = None if self.mismatches is None else [each.as_json() for each in self.mismatches]
        counts = {"sample": self.index, "turns": self.turns, "tokens": self.tokens}
        error = None if self.error is None else ": ".join(self.error)
        return counts | {"events": self.events, "roots": self.roots, "error": error, "tito_session_mismatch": found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How every session is driven. `call_seconds` bounds one completion; `admin_key` opens sessions."""

    actions: Sequence[Action]
    sampling: JsonMapping
    max_tokens: int
    failure_mode: FailureMode
    call_seconds: float
    stream: bool = True
    admin_key: str | None = None


async def verify_sessions(
    urls: Sequence[str], tito: Tito, plan: Plan, *, samples: int, notify: Callable[[str], None]
) -> list[Report]:
    """Run `samples` sessions at once, spread over the servers at `urls`."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=plan.call_seconds, trust_env=False, limits=limits) as http:
        runs = (_one(http, urls[index % len(urls)], tito, plan, index, notify) for index in range(samples))
        return list(await asyncio.gather(*runs))


async def _one(
    http: httpx.AsyncClient, url: str, tito: Tito, plan: Plan, index: int, notify: Callable[[str], None]
) -> Report:
    report = Report(index)
    try:
        async with SessionClient(url, admin_key=plan.admin_key) as client, client.opened(plan.sampling) as session:
            key, url = client.api_key(session), client.base_url(session)
            chat = Chat(http, url, TOOLS, plan.max_tokens, plan.stream, key)
            driver = Driver(chat, plan.failure_mode, lambda line: notify(f"sample {index}: {line}"))
            report.events = driver.events
            await driver.run(plan.actions)
            await _inspect(report, client, session, tito)
    except (ChatError, NoToolCall, SessionError, RenderError, CompareError) as error:
        report.error = (type(error).__name__, str(error))
    return report


async def _inspect(report: Report, client: SessionClient, session: str, tito: Tito) -> None:
    """Compare every timeline that collecting keeps."""
    described, told = await client.describe(session), await client.turns(session)
    samples = await client.collect(session)
    turns = {turn["turn"]: turn for turn in told["turns"]}
    report.turns, report.tokens = len(turns), sum(len(sample.tokens) for sample in samples)
    prefix = "roots_"
    counts = described["counts"].items()
    report.roots = {name.removeprefix(prefix): count for name, count in counts if name.startswith(prefix)}
    found: list[Mismatch] = []
    for leaf in told["leaves"]:
        line = timeline_to(turns, leaf, tito.stop_ids)
        found += await asyncio.to_thread(compare, tito, line.messages, line.ids, line.sampled, tools=TOOLS)
    report.mismatches = found


def timeline_to(turns: Mapping[int, JsonMapping], leaf: int, stop_ids: frozenset[int]) -> Timeline:
    """From the root to the turn `leaf`, as `GET /sessions/ID/turns` tells it."""
    path: list[JsonMapping] = []
    number: int | None = leaf
    while number is not None:
        path.append(turns[number])
        number = turns[number]["parent"]
    return timeline(_added(turn, stop_ids) for turn in reversed(path))


def _added(turn: JsonMapping, stop_ids: frozenset[int]) -> Added:
    output: list[int] = turn["output_ids"]
    return Added(
        messages=turn["messages"],
        reply=turn["reply"],
        drop=turn["drop"],
        prompt_ids=turn["prompt_ids"],
        output_ids=output,
        stopped=turn["finish_reason"] == "stop" and bool(output) and output[-1] in stop_ids,
    )
