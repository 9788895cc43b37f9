"""Routed experts: asked for piece by piece, and put together as one request would have returned them."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miles_lite.errors import UserError
from miles_lite.session.engine.experts import decode_experts, expert_layers, narrowed
from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench
from tests.session.replies import CHAT_TOOLS, ids_of

ASK: list[Any] = [{"role": "user", "content": "go"}]
LAYERS, TOP_K = 2, 3


@pytest.fixture(scope="module")
def moe_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, said to have experts: only its config is read here."""
    folder = tmp_path_factory.mktemp("moe")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 400, "num_hidden_layers": LAYERS}))
    return folder


def _route(tokens: list[int]) -> np.ndarray:
    """int32 [tokens - 1, LAYERS, TOP_K]: which experts a token goes to depends on all tokens up to it."""
    sums = np.cumsum(np.asarray(tokens[:-1], np.int64))
    return ((sums[:, None, None] * 7 + np.arange(LAYERS * TOP_K).reshape(LAYERS, TOP_K)) % 400).astype(np.int32)


def _routing(body: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """What an engine with experts adds to its answer."""
    assert body["return_routed_experts"] is True
    tokens = [*body["input_ids"], *made["output_ids"]]
    rows = _route(tokens)[body["routed_experts_start_len"] :]
    made["meta_info"]["routed_experts"] = base64.b64encode(rows.tobytes()).decode()
    return made


async def test_pieces_are_the_rows_of_one_request(moe_model: Path, tito: Tito, tmp_path: Path) -> None:
    """Plain turns, a cut turn, a tool turn, a fork, and a generation that a weight update interrupts."""
    called = '<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>'
    replies: list[list[int]] = [
        [*ids_of(tito, "one two"), STOP],
        ids_of(tito, "cut sho"),
        [*ids_of(tito, called), STOP],
        ids_of(tito, "half"),
        [*ids_of(tito, " and half"), STOP],
        [*ids_of(tito, "fork"), STOP],
    ]

    def script(body: dict[str, Any]) -> Any:
        number = len(b.engine.requests) - 1
        finish: dict[str, Any] | None = {"type": "length", "length": 1} if number == 1 else None
        if number == 3:
            finish = {"type": "abort", "message": "paused"}
        return _routing(body, answer(replies[number], finish=finish))

    async with bench(moe_model, script, routed_experts=True, run_dir=tmp_path) as b:
        session = await b.client.create({"temperature": 1.0, "max_new_tokens": 60})
        messages = list(ASK)
        for _ in range(4):
            _, got = await b.chat(session, messages, tools=CHAT_TOOLS)
            reply = got["choices"][0]["message"]
            calls = reply.get("tool_calls", ())
            results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls]
            messages += [reply, *(results or [{"role": "user", "content": "more"}])]
        await b.chat(session, [*messages[:2], {"role": "user", "content": "other"}], tools=CHAT_TOOLS)
        assert len(b.engine.requests) == 6
        starts = [request["routed_experts_start_len"] for request in b.engine.requests]
        assert starts[0] == 0
        assert all(start > 0 for start in starts[1:])
        samples = await b.client.collect(session)
        for limit in (None, len(samples[0]) - 3, len(samples[1]) - 2):
            for sample in await b.client.collect(session, limit):
                assert sample.routed_experts is not None
                assert sample.routed_experts.dtype == np.uint16
                assert np.array_equal(sample.routed_experts, _route(sample.tokens.tolist()))
        before = [s.routed_experts.tobytes() for s in samples if s.routed_experts is not None]
    async with bench(moe_model, script, routed_experts=True, run_dir=tmp_path) as b:
        again = await b.client.collect(session)
        assert [s.routed_experts.tobytes() for s in again if s.routed_experts is not None] == before


@pytest.mark.parametrize("payload", [None, "not base64!", base64.b64encode(b"\0" * 12).decode()])
async def test_an_engine_that_returns_no_experts_is_refused(moe_model: Path, payload: str | None) -> None:
    def script(body: dict[str, Any]) -> Any:
        made = answer([5, STOP])
        made["meta_info"]["routed_experts"] = payload
        return made

    async with bench(moe_model, script, routed_experts=True) as b:
        session = await b.client.create()
        status, body = await b.chat(session, ASK)
        assert status == 502
        assert "routed experts" in body["error"]["message"]
        assert (await b.client.describe(session))["turns"] == []


def test_a_model_without_experts_cannot_be_asked_for_them(tiny_model: Path, moe_model: Path) -> None:
    assert expert_layers(moe_model) == LAYERS
    with pytest.raises(UserError, match="--use-rollout-routing-replay"):
        expert_layers(tiny_model)


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (256, np.uint16), (65536, np.int32), (-1, np.int32)])
def test_the_narrowest_type_is_taken(largest: int, kind: type) -> None:
    rows = np.asarray([[[0, largest]]], np.int32)
    assert narrowed(rows).dtype == kind
    assert np.array_equal(narrowed(rows), rows)
    made = decode_experts(base64.b64encode(rows.tobytes()).decode(), rows=1, layers=1)
    assert np.array_equal(made, rows)
