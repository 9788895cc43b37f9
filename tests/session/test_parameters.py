"""What a turn was sampled under stays with it, and engines that refuse to go on are asked anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miles_lite.session.engine.sampling import check_run, inexact
from miles_lite.session.errors import ApiError
from tests.session.engine import STOP, answer, bench, failure
from tests.session.replies import CHAT_TOOLS

ASK: list[Any] = [{"role": "user", "content": "go"}]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"temperature": 0.5, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "max_new_tokens": 5, "stop": ["x"]}, []),
        ({"top_p": 0.9, "top_k": 20}, ["top_p", "top_k"]),
        ({"min_p": 0.1, "repetition_penalty": 1.1}, ["min_p", "repetition_penalty"]),
        ({"presence_penalty": 0.5, "frequency_penalty": -0.5}, ["frequency_penalty", "presence_penalty"]),
        ({"structural_tag": "{}"}, ["structural_tag"]),
        ({"json_schema": "{}", "top_p": 1}, ["json_schema"]),
    ],
)
def test_parameters_that_bend_logprobs_are_named(params: dict[str, Any], names: list[str]) -> None:
    assert sorted(inexact(params)) == sorted(names)


@pytest.mark.parametrize("n", [2, 0, "2", True, [1]])
def test_a_sessions_own_parameters_ask_for_one_answer(n: Any) -> None:
    with pytest.raises(ApiError, match="n must be 1"):
        check_run({"temperature": 1.0, "n": n})
    assert check_run({"n": 1}) == {"n": 1}


@pytest.mark.parametrize("policy", ["keep", "mask"])
async def test_inexact_turns_are_flagged_and_kept_or_masked(tiny_model: Path, policy: str) -> None:
    async with bench(tiny_model, lambda body: answer([40, STOP]), session_logprob_inexact=policy) as b:
        session = await b.client.create({"temperature": 0.7, "max_new_tokens": 50})
        _, got = await b.chat(session, ASK, tools=CHAT_TOOLS)
        more = [*ASK, got["choices"][0]["message"], *ASK]
        await b.chat(session, more, tools=CHAT_TOOLS, tool_choice="required")
        (sample,) = await b.client.collect(session)
        assert sample.metadata["logprob_inexact"] == {"parameters": ["structural_tag"], "tokens": 2}
        assert sample.trained_tokens == (4 if policy == "keep" else 2)
        first, second = (await b.client.describe(session))["turns"]
        assert first["sampling"] == b.engine.requests[0]["sampling_params"]
        assert "structural_tag" in second["sampling"]
        plain = await b.client.create({"temperature": 0.7, "max_new_tokens": 50})
        await b.chat(plain, ASK, top_p=0.2)
        (sample,) = await b.client.collect(plain)
        assert "logprob_inexact" not in sample.metadata, "the client's top_p gave way to the run's"
        top_p = await b.client.create({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 50})
        await b.chat(top_p, ASK)
        (sample,) = await b.client.collect(top_p)
        assert sample.metadata["logprob_inexact"]["parameters"] == ["top_p"]


@pytest.mark.parametrize("chooses", [True, False])
async def test_clients_choose_sampling_parameters_only_where_they_may(tiny_model: Path, chooses: bool) -> None:
    async with bench(tiny_model, lambda body: answer([40, STOP]), session_client_sampling=chooses) as b:
        session = await b.client.create({"temperature": 0.7, "max_new_tokens": 50})
        await b.chat(session, ASK, temperature=0.2)
        assert b.engine.requests[0]["sampling_params"]["temperature"] == (0.2 if chooses else 0.7)


@pytest.mark.parametrize("status", [400, 409])
async def test_a_hop_that_failed_to_roll_back_is_asked_once_more_with_the_whole_conversation(
    tiny_model: Path, status: int
) -> None:
    refusing = [True]

    def script(body: dict[str, Any]) -> Any:
        if refusing[0] and len(b.engine.requests) > 1:
            refusing[0] = False
            return failure(status, "Rollback failed: discard_count=2")
        return answer([40 + len(b.engine.requests), STOP])

    async with bench(tiny_model, script) as b:
        session = await b.client.create()
        _, got = await b.chat(session, ASK)
        more = [*ASK, got["choices"][0]["message"], *ASK]
        found, _ = await b.chat(session, more)
        assert found == 200
        assert len(b.engine.requests) == 3
        described = await b.client.describe(session)
        assert [turn["parent"] for turn in described["turns"]] == [None, None]
        assert described["counts"]["roots_reanchored"] == 1
        (sample,) = await b.client.collect(session)
        assert sample.metadata["reanchored"] is True
        assert sample.trained_tokens == 4
        refusing[0] = True
        fresh = await b.client.create()
        found, body = await b.chat(fresh, ASK)
        assert (found, body["error"]["code"]) == (400, "rollback_failed"), "there was nothing to go on from"
        assert len(b.engine.requests) == 4
