"""Requests whose answer is over with its first JSON object: nothing after it is sampled, and all goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench
from tests.session.replies import ids_of, saying
from tests.waiting import until

GO: list[Any] = [{"role": "user", "content": "go"}]
REPLY = '<think>\nnot {"a": 1} yet\n</think>\n\nwell: {"tool": "f", "arguments": {"x": "}"}}'
TAIL = ' and {"more": 1} that nobody asked for'


def _events(ids: list[int]) -> list[dict[str, Any]]:
    made = []
    for end, token in enumerate(ids, start=1):
        event = answer([token])
        event["meta_info"] |= {"completion_tokens": end, "finish_reason": None, "weight_versions": None}
        made.append(event)
    return made


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_is_left_at_the_token_that_completes_the_object(
    tiny_model: Path, tito: Tito, stream: bool
) -> None:
    ids = [token for char in REPLY + TAIL for token in ids_of(tito, char)]
    kept = [token for char in REPLY for token in ids_of(tito, char)]

    async def endless(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for event in _events(ids):
            yield event
        await asyncio.Event().wait()

    async with bench(tiny_model, endless) as b:
        session = await b.client.create()
        if stream:
            _, events = await b.stream(session, GO, stop_at="json_object")
            choices = [event["choices"][0] for event in events[:-1]]
            content = "".join(choice["delta"].get("content") or "" for choice in choices)
            message = {"role": "assistant", "content": content}
            assert choices[-1]["finish_reason"] == "stop"
        else:
            status, got = await b.chat(session, GO, stop_at="json_object")
            assert status == 200
            message, content = got["choices"][0]["message"], got["choices"][0]["message"]["content"]
            assert got["usage"]["completion_tokens"] == len(kept)
        assert content.endswith('{"tool": "f", "arguments": {"x": "}"}}')
        await until(lambda: b.engine.cancelled, "the engine's request to end")
        assert b.engine.cancelled == 1
        b.engine.script = lambda body: answer([5, STOP])
        assert (await b.chat(session, [*GO, message, *GO]))[0] == 200
        (sample,) = await b.client.collect(session)
        assert np.array_equal(sample.tokens[sample.loss_mask == 1], [*kept, 5, STOP])
        asked = b.engine.requests[-1]["input_ids"]
        assert np.array_equal(sample.tokens[: len(asked)], asked)
        assert "".join(tito.encoder.decode(asked).split(REPLY)[1:]).startswith("<|im_end|>\n<|im_start|>user")


async def test_a_reply_without_an_object_ends_as_it_did(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito, "no { object")) as b:
        session = await b.client.create()
        await b.chat(session, GO, stop_at="json_object")
        (sample,) = await b.client.collect(session)
        assert sample.tokens[sample.loss_mask == 1].tolist() == [*ids_of(tito, "no { object"), STOP]


async def test_anything_else_to_stop_at_is_refused(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        status, got = await b.chat(await b.client.create(), GO, stop_at="full moon")
        assert (status, got["error"]["param"]) == (400, "stop_at")
