"""What samples say of who asked, and the pickers that go by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.session.engine import STOP, Bench, answer, bench

TITLE = "Generate a concise, sentence-case title (3-7 words) for this coding session.\nReturn JSON."
AGENT = "\nYou are an agent that mends programs."
REQUESTS: list[tuple[str, dict[str, str]]] = [
    (AGENT, {}),
    (TITLE, {}),
    ("You look files up.", {"X-Claude-Code-Agent-Id": "a1b2"}),
    ("You are Codex.", {"X-OpenAI-Subagent": "compact"}),
    ("Go on.", {"X-Agent-Name": "summary"}),
]


async def _ask(b: Bench, session: str) -> None:
    async with aiohttp.ClientSession() as http:
        for system, headers in REQUESTS:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": "go"}]
            url = f"{b.client.base_url(session)}/chat/completions"
            async with http.post(url, json={"messages": messages}, headers=headers) as response:
                assert response.status == 200


@pytest.mark.parametrize("memory", [8.0, 0.0])
async def test_samples_say_who_asked_also_when_they_come_from_the_journal(
    tiny_model: Path, tmp_path: Path, memory: float
) -> None:
    script = lambda body: answer([5, STOP])  # noqa: E731
    async with bench(tiny_model, script, run_dir=tmp_path, session_memory_gb=memory) as b:
        session = await b.client.create()
        await _ask(b, session)
        await b.client.create()
        said = [sample.metadata for sample in await b.client.collect(session)]
        assert [each["system"] for each in said] == [system.strip().splitlines()[0] for system, _ in REQUESTS]
        assert [each.get("hints") for each in said] == [
            None,
            None,
            {"x-claude-code-agent-id": "a1b2"},
            {"x-openai-subagent": "compact"},
            None,
        ]
        assert [each.get("agent") for each in said] == [None] * 4 + ["summary"]


@pytest.mark.parametrize(("name", "picked"), [("task_only", [0, 2]), ("without_subagents", [0])])
async def test_a_picker_leaves_out_what_is_not_the_task(tiny_model: Path, name: str, picked: list[int]) -> None:
    path: dict[str, Any] = {"session_sample_picker_path": f"miles_lite.session.samples.pickers.{name}"}
    async with bench(tiny_model, lambda body: answer([5, STOP]), session_disconnect_grace=0.0, **path) as b:
        session = await b.client.create()
        await _ask(b, session)
        assert [sample.metadata["leaf"] for sample in await b.client.collect(session)] == picked
        url = f"{b.client.base_url(session)}/chat/completions"
        messages = [{"role": "system", "content": AGENT}, {"role": "user", "content": "go"}]
        again = {"X-Stainless-Retry-Count": "1"}
        async with aiohttp.ClientSession() as http:
            await http.post(url, json={"messages": messages}, headers=again)
        leaves = [sample.metadata["leaf"] for sample in await b.client.collect(session)]
        assert leaves == [*picked[1:], len(REQUESTS)]
