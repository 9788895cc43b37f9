"""`tito_session_mismatch` of collected samples, on a session server whose engine is a script."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.turn_record import pack_ids
from miles_lite.session.samples.audit import MISMATCH, mismatches
from miles_lite.tito import Tito
from tests.session.engine import bench
from tests.session.replies import CHAT_TOOLS, ids_of, saying

THOUGHT = "<think>\nwhy not\n</think>\n\n"
CALL = '<tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>'
RESULT = {"role": "tool", "content": "a <|im_end|> b"}


def collected(model: Path, tito: Tito, text: str, *, cut: bool = False, **options: Any) -> list[Any]:
    """What both samples say of themselves after three turns, the second asked twice."""

    async def run() -> list[Any]:
        async with bench(model, saying(tito, text, cut=cut), **options) as server:
            session = await server.client.create({"temperature": 1.0})
            messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
            for turn in range(3):
                for _ in range(1 + (turn == 1)):
                    _, answer = await server.chat(session, messages, tools=CHAT_TOOLS)
                reply = answer["choices"][0]["message"]
                results = [RESULT | {"tool_call_id": call["id"]} for call in reply.get("tool_calls") or []]
                messages += [reply, *(results or [{"role": "user", "content": f"go on {turn}"}])]
            return [sample.metadata.get(MISMATCH, "absent") for sample in await server.client.collect(session)]

    return asyncio.run(run())


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("text", ["well", CALL, THOUGHT + CALL, THOUGHT + "so"])
def test_a_session_holds_what_its_template_prints(tiny_model: Path, tito: Tito, text: str, cut: bool) -> None:
    assert collected(tiny_model, tito, text, cut=cut, session_compare_template=True) == [[], []]


def test_a_spelling_of_the_models_own_is_told(tiny_model: Path, tito: Tito) -> None:
    found = collected(tiny_model, tito, CALL.replace('": ', '":'), session_compare_template=True)
    assert [[entry["type"] for entry in each] for each in found] == [["assistant_text"] * 2, ["assistant_text"] * 3]


def test_nothing_is_compared_unless_asked(tiny_model: Path, tito: Tito) -> None:
    assert collected(tiny_model, tito, "well") == ["absent"] * 2


async def test_a_foreign_token_is_found_and_what_cannot_be_compared_is_none(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito, "well")) as server:
        session = await server.client.create({"temperature": 1.0})
        await server.chat(session, [{"role": "user", "content": "hi"}])
        assert server.server.service is not None
        (turn,) = (await server.server.service.tree(session)).turns
        assert mismatches(tito, turn) == []
        changed = turn.prompt_ids.copy()
        changed[len(ids_of(tito, "<|im_start|>user\n"))] = ids_of(tito, "X")[0]
        (found,) = mismatches(tito, replace(turn, prompt_bytes=pack_ids(changed))) or []
        assert found["type"] == "non_assistant_text"
        assert mismatches(tito, replace(turn, caller=Caller(None, turn.caller.seed))) is None
