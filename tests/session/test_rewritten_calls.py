"""Harnesses that rewrite the arguments of a call before they send it back, as Claude Code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench
from tests.session.replies import ids_of

TOOLS: list[Any] = [
    {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}},
    {"name": "Edit", "input_schema": {"type": "object", "properties": {"old": {"type": "string"}}}},
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("Bash", {"command": "cd /work && ls"}),
    ("Edit", {"file_path": "/work/a.py", "old": "1", "new": "2"}),
    ("Bash", {"command": "  cat a.py "}),
    ("Bash", {"command": "echo 3", "timeout": 1e3}),
    ("Edit", {"file_path": "/work/a.py", "old": "2", "new": "3"}),
    ("Bash", {"command": "cd /work && python a.py"}),
    ("Bash", {"command": "ls"}),
    ("Edit", {"file_path": "/work/b.py", "old": "", "new": "x\n"}),
    ("Bash", {"command": "cd /work && git diff "}),
    ("Bash", {"command": "true"}),
]


def rewritten(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What Claude Code keeps of a call."""
    if name == "Edit":
        return arguments | {"replace_all": False}
    return arguments | {"command": arguments["command"].removeprefix("cd /work && ").strip()}


def _replies(tito: Tito) -> list[list[int]]:
    """Ten calls and an answer; every reply is spelled in single characters, as no tokenizer would."""
    texts = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
        for name, arguments in CALLS
    ]
    return [[*(token for char in text for token in ids_of(tito, char)), STOP] for text in [*texts, "done"]]


async def _converse(b: Bench, session: str) -> None:
    client = anthropic.AsyncAnthropic(base_url=f"{b.client.url}/sessions/{session}", api_key="-", max_retries=0)
    b.closing.push_async_callback(client.close)
    messages: list[Any] = [{"role": "user", "content": "mend it"}]
    while True:
        async with client.messages.stream(model="m", max_tokens=500, messages=messages, tools=TOOLS) as stream:
            got = await stream.get_final_message()
        blocks = [block.model_dump(exclude_none=True) for block in got.content]
        calls = [block for block in blocks if block["type"] == "tool_use"]
        if not calls:
            return
        for call in calls:
            call["input"] = rewritten(call["name"], call["input"])
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok"} for call in calls]
        messages += [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}]


@pytest.mark.parametrize("policy", ["v2", "v1"])
async def test_eleven_turns_with_rewritten_calls_are_one_sample_of_what_was_sampled(
    tiny_model: Path, tito: Tito, tmp_path: Path, policy: str
) -> None:
    replies = _replies(tito)

    said = iter(replies)
    async with bench(
        tiny_model,
        lambda body: answer(next(said)),
        use_session_server=policy,
        session_journal_dir=str(tmp_path),
        session_memory_gb=0.0,
    ) as b:
        session = await b.client.create()
        await _converse(b, session)
        (sample,) = await b.client.collect(session)
        assert sample.metadata["turns"] == len(replies)
        assert sample.metadata["counts"]["calls_rewritten"] == sum(
            rewritten(name, arguments) != arguments for name, arguments in CALLS
        )
        trained = sample.tokens[sample.loss_mask == 1]
        assert np.array_equal(trained, [token for reply in replies for token in reply])
        asked = b.engine.requests[-1]["input_ids"]
        assert np.array_equal(sample.tokens[: len(asked)], asked)


async def test_a_flag_makes_arguments_count(tiny_model: Path, tito: Tito) -> None:
    replies = _replies(tito)

    said = iter(replies)
    async with bench(tiny_model, lambda body: answer(next(said)), session_message_matcher="replay_arguments") as b:
        session = await b.client.create()
        await _converse(b, session)
        assert len(await b.client.collect(session)) > 1
