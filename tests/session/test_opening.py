"""A session that is opened with another's turns goes on from their very tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miles_lite.process.json_types import JsonObject
from miles_lite.session.client import SessionClient, SessionError
from tests.session.engine import STOP, answer, bench

TOLD: list[JsonObject] = [
    {
        "turn": 0,
        "parent": None,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "reply": {"role": "assistant", "content": "as no template prints it"},
        "drop": 0,
        "prompt_ids": [7, 8, 9],
        "output_ids": [40, 41, STOP],
        "output_logprobs": [-0.5, -0.25, -1.0],
        "temperature": 0.7,
        "finish_reason": "stop",
        "weight_versions": [[3, 0, 3]],
    },
    {
        "turn": 1,
        "parent": 0,
        "messages": [{"role": "user", "content": "more"}],
        "reply": {"role": "assistant", "content": "x"},
        "drop": 1,
        "prompt_ids": [5, 6],
        "output_ids": [50, 51],
        "output_logprobs": [-0.5, -0.5],
        "temperature": 0.7,
        "finish_reason": "length",
        "weight_versions": [[4, 0, 2]],
    },
]


async def opened(client: SessionClient, turns: Any) -> str:
    return await client.create({"temperature": 1.0}, turns=turns)


async def test_what_was_told_is_told_again(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await opened(b.client, TOLD)
        turns = await b.client.turns(session)
        assert turns["turns"] == TOLD
        assert (await b.client.turns(await opened(b.client, turns["turns"])))["turns"] == TOLD


async def test_a_turn_is_asked_again_with_its_very_tokens(tiny_model: Path) -> None:
    replies = iter([[60, STOP], [61, STOP], [62, STOP], [63, STOP]])
    async with bench(tiny_model, lambda body: answer(next(replies)), tito_allowed_append_roles=("user",)) as b:
        session = await opened(b.client, TOLD)
        first = TOLD[0]["messages"]
        before = [*first, TOLD[0]["reply"]]
        second = [*before, *TOLD[1]["messages"]]
        for messages in (first, second, [*before, {"role": "user", "content": "other"}]):
            assert (await b.chat(session, messages))[0] == 200
        status, _ = await b.chat(session, [*second, TOLD[1]["reply"], {"role": "user", "content": "on"}])
        assert status == 200
        asked = [request["input_ids"] for request in b.engine.requests]
        turns = await b.client.turns(session)
    assert asked[0] == [7, 8, 9]
    assert asked[1] == [7, 8, 9, 40, 41, 5, 6], "without what the recorded turn had dropped"
    assert asked[2][:6] == [7, 8, 9, 40, 41, STOP], "other words are printed by the template"
    assert asked[3][:9] == [7, 8, 9, 40, 41, 5, 6, 50, 51]
    assert [turn["parent"] for turn in turns["turns"]] == [None, 0, None, 0, 0, 1]
    assert turns["leaves"] == [2, 3, 4, 5], "what was told stays beside what was sampled"


def without(name: str) -> list[JsonObject]:
    return [{key: value for key, value in TOLD[0].items() if key != name}]


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no list": (lambda: {"turns": 1}, "turns must be a list"),
    "no ids": (lambda: without("prompt_ids"), "turns[0].prompt_ids is missing"),
    "negative": (lambda: [TOLD[0] | {"prompt_ids": [-1]}], "turns[0].prompt_ids[0] must be an integer >= 0"),
    "fewer logprobs": (lambda: [TOLD[0] | {"output_logprobs": []}], "not as many as output_ids"),
    "null logprob": (lambda: [TOLD[0] | {"output_logprobs": [None] * 3}], "must be a number"),
    "order": (lambda: [TOLD[1]], "turns[0].turn must be 0"),
    "parent": (lambda: [TOLD[0], TOLD[1] | {"parent": 1}], "turns[1].parent must be a turn before it"),
    "drop": (lambda: [TOLD[0], TOLD[1] | {"drop": 4}], "turns[1].drop is more"),
    "versions": (lambda: [TOLD[0] | {"weight_versions": [[1, 0, 9]]}], "go beyond output_ids"),
    "reply": (lambda: [TOLD[0] | {"reply": {"role": "user", "content": "x"}}], "must be the assistant's"),
    "nothing said": (lambda: [TOLD[0] | {"messages": []}], "no turn is before it"),
    "role": (lambda: [TOLD[0] | {"messages": [{"role": "x", "content": ""}]}], "role must be one of"),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_turn_is_refused(case: str, tiny_model: Path) -> None:
    made, said = BAD[case]
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        with pytest.raises(SessionError) as refused:
            await opened(b.client, made())
        assert refused.value.status == 400
        assert said in str(refused.value)
