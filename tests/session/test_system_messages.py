"""Codex on Qwen3.5's template, which takes one system message: its turns attach, and what was done is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from miles_lite.tito import tito_of
from tests.session.engine import answer, bench
from tests.session.replies import RESPONSES_TOOLS
from tests.tito.material import save_model


@pytest.mark.parametrize("policy", ["v1", "v2"])
async def test_codex_converses_with_qwen35(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setattr("miles_lite.tito.parser_proof.sglang_installed", lambda: False)
    folder = save_model(tmp_path / "model", "trl/qwen3_5_think", eos="<|im_end|>", max_position_embeddings=4096)
    tito = tito_of(folder, append_roles=("tool", "user"))
    stop = tito.encoder.id_of("<|im_end|>")
    assert stop is not None
    reply = [*tito.encoder.encode("why\n</think>\n\ndone").tolist(), stop]

    def script(body: dict[str, Any]) -> Any:
        return answer(reply, finish={"type": "stop", "matched": stop})

    async with bench(folder, script, use_session_server=policy) as b:
        session = await b.client.create()
        client = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0)
        b.closing.push_async_callback(client.close)
        items: list[Any] = [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Permissions."}]},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Style."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Environment."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
        ]
        for turn in range(3):
            got = await client.responses.create(
                model="m", instructions="You are Codex.", input=items, tools=RESPONSES_TOOLS
            )
            items += [item.model_dump() for item in got.output]
            items.append({"type": "message", "role": "developer", "content": f"Remember {turn}."})
            items.append({"type": "message", "role": "user", "content": f"Go on {turn}."})
        described = await b.client.describe(session)
        assert [turn["parent"] for turn in described["turns"]] == [None, 0, 1]
        assert described["counts"]["system_joined"] == 2
        assert described["counts"]["system_placed"] == 2
        (sample,) = await b.client.collect(session)
        text = tito.encoder.decode(sample.tokens)
        assert "<|im_start|>user\nRemember 0.<|im_end|>\n<|im_start|>user\nGo on 0.<|im_end|>" in text
        assert "You are Codex.\n\nPermissions.\n\nStyle.<|im_end|>" in text
