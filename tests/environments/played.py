"""One rollout of an environment: a real agent worker and session server, whose engine says what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from miles_lite.config.options import parse
from miles_lite.errors import Where
from miles_lite.rollout.agent_calls import Task
from miles_lite.rollout.agent_worker import AgentWorker
from miles_lite.rollout.prompts import open_source
from miles_lite.sample import Rollout
from tests.session.engine import STOP, answer, bench

FLAGS = "--hf-checkpoint m --rollout-batch-size 1 --num-rollout 1".split()
Say = Callable[[int, str], str | None]
"""What the model says in a turn, from 0, of the text that it was sent; None: it is cut."""


def given(spec: str, args: dict[str, Any] | None = None, *more: str) -> Any:
    """The run's config."""
    flags = [*FLAGS, "--environment", spec, *more]
    return parse(flags if args is None else [*flags, "--environment-args", json.dumps(args)])[0]


def broken(rollout: Rollout) -> str:
    """Why a rollout is the environment's failure."""
    assert rollout.failure is not None
    assert (rollout.reward, rollout.failure.where) == (None, Where.ENVIRONMENT)
    return rollout.failure.why


def play(model: Path, config: Any, say: Say, *, tasks: int = 1) -> list[Rollout]:
    """The rollouts of the first tasks, one after the other."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    turn = 0

    def script(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal turn
        said = say(turn, tokenizer.decode(body["input_ids"], skip_special_tokens=False))
        turn += 1
        if said is None:
            return answer([40], finish={"type": "length", "length": 1})
        return answer([*tokenizer.encode(said, add_special_tokens=False).ids, STOP])

    async def run() -> list[Rollout]:
        nonlocal turn
        roles = config.session.tito_allowed_append_roles
        async with bench(model, script, tito_allowed_append_roles=roles) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            source, made = open_source(config.data), []
            for index in range(tasks):
                turn = 0
                prompt = source.prompts[source.take()]
                task = Task(index, index, prompt, bench_.client.url, {"temperature": 1.0, "max_new_tokens": 64})
                made.append((await worker.run(task))[0])
            await worker.stop()
            return made

    return asyncio.run(run())
