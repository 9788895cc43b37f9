"""Episodes of the example's harnesses through a real session server: what the session holds afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Run
from tokenizers import Tokenizer

from miles_lite.sample import Sample
from miles_lite.session.client import SessionClient
from tests.session.engine import STOP, answer, bench

ROLES = ("tool", "user", "assistant")


@dataclass
class Session:
    """What an episode left: its result, the session's counts, and its samples as text."""

    result: dict[str, Any]
    counts: dict[str, Any]
    samples: list[Sample]
    tokenizer: Tokenizer

    def trained(self) -> list[list[str]]:
        """Per sample, the texts that the loss mask covers, one per turn."""
        return [[self._text(part) for part in _runs(sample)] for sample in self.samples]

    def context(self, number: int) -> str:
        sample = self.samples[number]
        return self._text(sample.tokens[sample.loss_mask == 0])

    def _text(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def _runs(sample: Sample) -> list[np.ndarray]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.loss_mask, [0]])))
    return [sample.tokens[start:end] for start, end in edges.reshape(-1, 2)]


def play(
    model: Path,
    run: Run,
    row: dict[str, Any],
    replies: Sequence[str],
    *,
    roles: Sequence[str] = ROLES,
    bind_host: str = "127.0.0.1",
) -> Session:
    """An episode in which the engine says `replies` in turn, every one of which is used."""
    tokenizer = load_tokenizer(model)
    waiting = iter(replies)

    def script(body: dict[str, Any]) -> dict[str, Any]:
        return answer([*tokenizer.encode(next(waiting), add_special_tokens=False).ids, STOP])

    async def play_one() -> Session:
        async with bench(model, script, tito_allowed_append_roles=tuple(roles), bind_host=bind_host) as running:
            return await episode(running.client, tokenizer, run, row, temperature=1.0)

    session = asyncio.run(play_one())
    assert next(waiting, None) is None
    assert len(session.counts["turns"]) == len(replies)
    return session


async def episode(
    client: SessionClient, tokenizer: Tokenizer, run: Run, row: dict[str, Any], *, temperature: float
) -> Session:
    """One episode on a task in a session of its own."""
    session_id = await client.create({"temperature": temperature})
    base_url, api_key = client.base_url(session_id), client.api_key(session_id)
    result = await run(base_url, row["input"], {"max_tokens": 800}, row["metadata"], api_key=api_key)
    counts, samples = await client.describe(session_id), await client.collect(session_id)
    await client.delete(session_id)
    return Session(result, counts, samples, tokenizer)


def load_tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def reasons(session: Session) -> dict[str, int]:
    return {name: count for name, count in session.counts["counts"].items() if name.startswith(("forks", "roots"))}
