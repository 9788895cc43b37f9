"""mini-swe-agent's tool-calling model, unmodified, on a session server with a scripted engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench
from tests.session.replies import ids_of

pytest.importorskip("minisweagent")
pytest.importorskip("mcp", reason="litellm imports mcp when tools are given")

COMMANDS = ["echo one", "echo two; exit 3", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"]


async def test_its_turns_become_one_sample(
    tiny_model: Path, tito: Tito, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    def call(command: str) -> list[int]:
        arguments = json.dumps({"name": "bash", "arguments": {"command": command}})
        return [*ids_of(tito, f"<think>\nhm\n</think>\n\nI do\n<tool_call>\n{arguments}\n</tool_call>"), STOP]

    async with bench(tiny_model, lambda body: answer(call(COMMANDS[len(b.engine.requests) - 1]))) as b:
        session = await b.client.create({"temperature": 1.0, "max_new_tokens": 200})
        kwargs: dict[str, Any] = {"api_base": b.client.base_url(session), "api_key": "-", "temperature": 0.0}
        model = LitellmModel(model_name="openai/m", model_kwargs=kwargs, cost_tracking="ignore_errors")
        agent = DefaultAgent(
            model,
            LocalEnvironment(cwd=str(tmp_path)),
            system_template="You are an agent.",
            instance_template="{{ task }}",
            step_limit=5,
        )
        result = await asyncio.to_thread(agent.run, "Say one and two.")
        assert result["exit_status"] == "Submitted"
        described = await b.client.describe(session)
        assert [turn["parent"] for turn in described["turns"]] == [None, 0, 1]
        (sample,) = await b.client.collect(session)
        assert sample.trained_tokens == sum(len(call(command)) for command in COMMANDS)
        assert "<returncode>3</returncode>" in tito.encoder.decode(b.engine.requests[-1]["input_ids"])
