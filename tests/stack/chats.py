"""Sessions that chat without a pause, and when each of their replies came."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

from miles_lite.config.engines import Engines
from miles_lite.config.model import Context, Model, Seed
from miles_lite.config.places import RunFolder, Topology
from miles_lite.config.serving import Serving
from miles_lite.config.session_options import Session
from miles_lite.process.remote import Remote
from miles_lite.session.client import SessionClient
from miles_lite.stack.fleet import Fleet, FleetStatus
from tests.processes import below, command_of


def stack_options(model: Path, run_dir: Path, **engines: Any) -> Serving:
    """Two engines of `model`."""
    return Serving(
        topology=Topology(device="cpu", rollout_num_gpus=2),
        model=Model(hf_checkpoint=str(model)),
        engines=Engines(**engines),
        session=Session(tito_allowed_append_roles=("tool", "user"), session_retry_seconds=60.0),
        context=Context(rollout_max_context_len=2048),
        seeding=Seed(seed=1),
        run=RunFolder(run_dir=str(run_dir)),
    )


@dataclass
class Chats:
    """`count` sessions; `replies` are (session, seconds since the epoch)."""

    url: str
    count: int = 4
    tokens: int = 32
    admin_key: str | None = None
    replies: list[tuple[int, float]] = field(default_factory=list)
    stopped: bool = False

    async def run(self) -> list[list[Any]]:
        """Chat until `stopped`; each session's samples. A reply that is an error ends it."""
        async with SessionClient(self.url, admin_key=self.admin_key) as client:
            return list(await asyncio.gather(*(self._chat(client, index) for index in range(self.count))))

    async def _chat(self, client: SessionClient, index: int) -> list[Any]:
        session = await client.create({"temperature": 1.0, "max_new_tokens": self.tokens})
        base, key = client.base_url(session), client.api_key(session)
        agent = openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=120)
        messages: list[Any] = [{"role": "user", "content": f"hello {index}"}]
        while not self.stopped:
            got = await agent.chat.completions.create(model="m", messages=messages)
            self.replies.append((index, time.time()))
            messages = [*messages, got.choices[0].message.model_dump(exclude_none=True)]
            messages.append({"role": "user", "content": "go on"})
            if len(messages) > 20:
                messages = messages[:1]
        return list(await client.collect(session))

    def first_after(self, moment: float) -> list[float]:
        """For each session, seconds from `moment` to its next reply; infinity without one."""
        return [
            min(
                (at - moment for session, at in self.replies if session == index and at >= moment), default=float("inf")
            )
            for index in range(self.count)
        ]

    def pace(self, start: float, end: float) -> float:
        """Seconds from one reply of a session to its next, the median of those between two moments."""
        times = [[at for one, at in self.replies if one == index and start <= at < end] for index in range(self.count)]
        return statistics.median(later - at for each in times for at, later in itertools.pairwise(each))


async def replaced(fleet: Remote[Fleet], count: int, *, seconds: float = 120.0) -> FleetStatus:
    """How it stands once so many of its engines have been replaced."""
    deadline = time.monotonic() + seconds
    while len((status := await fleet.call(Fleet.status)).recoveries) < count:
        assert time.monotonic() < deadline, f"waited {seconds:g} s for replacement {count}"
        await asyncio.sleep(0.02)
    return status


def scheduler_of(pid: int) -> psutil.Process:
    """The scheduler among a server's children."""
    return next(child for child in below(pid) if "scheduler" in command_of(child))
