"""A session server over HTTP, with a scripted engine beneath."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from miles_lite.errors import UserError, Where
from miles_lite.sample import NOT_SAMPLED, Failure, Sample
from miles_lite.session.client import SessionClient, SessionError
from miles_lite.session.engine.engine_client import NO_WORKER
from miles_lite.session.server import SessionServer
from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench, failure, spec
from tests.session.trees import fingerprint
from tests.waiting import until

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {}}}]


def _ids(tito: Tito, text: str) -> list[int]:
    return list(map(int, tito.encoder.encode(text)))


async def test_turns_extend_the_ids_of_the_turns_before(tiny_model: Path, tito: Tito) -> None:
    reply = [*_ids(tito, "the answer"), STOP]

    async with bench(tiny_model, lambda body: answer(reply)) as b:
        session = await b.client.create({"temperature": 0.7, "max_new_tokens": 50})
        messages = [{"role": "system", "content": "s"}, *HELLO]
        for turn in range(3):
            status, got = await b.chat(session, messages, model="m", temperature=0.1)
            assert status == 200
            assert got["choices"][0]["message"] == {"role": "assistant", "content": "the answer"}
            assert got["choices"][0]["finish_reason"] == "stop"
            service = b.server.service
            assert service is not None
            held = service.sessions.peek(session)
            assert held is not None
            assert [list(seen.messages) for seen in held.bodies._seen] == [messages]
            messages = [*messages, got["choices"][0]["message"], {"role": "user", "content": f"<|im_end|> {turn}"}]
        prompts = [request["input_ids"] for request in b.engine.requests]
        for before, after in pairwise(prompts):
            assert after[: len(before) + len(reply)] == before + reply
        assert b.engine.requests[0]["sampling_params"]["temperature"] == 0.7
        assert {request["key"] for request in b.engine.requests} == {session}
        (sample,) = await b.client.collect(session)
        assert list(sample.tokens) == prompts[-1] + reply
        assert sample.trained_tokens == 3 * len(reply)
        assert set(sample.weight_versions) == {NOT_SAMPLED, 3}
        assert set(sample.temperatures[sample.loss_mask == 1]) == {np.float32(0.7)}
        assert sample.metadata["counts"]["sampling_overridden"] == 3
        assert sample.metadata["counts"]["roots_first"] == 1


async def test_tool_calls_reasoning_usage_and_logprobs(tiny_model: Path, tito: Tito) -> None:
    text = '<think>\nwhy\n</think>\n\ndo\n<tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>'
    reply = [*_ids(tito, text), STOP]

    async with bench(tiny_model, lambda body: answer(reply)) as b:
        session = await b.client.create()
        _, got = await b.chat(session, HELLO, tools=TOOLS, logprobs=True, max_tokens=9)
        choice, usage = got["choices"][0], got["usage"]
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("do", "why")
        assert call["function"] == {"name": "run", "arguments": '{"cmd": "ls"}'}
        assert usage["completion_tokens"] == len(reply) == len(choice["logprobs"]["content"])
        assert usage["prompt_tokens"] == len(b.engine.requests[0]["input_ids"])
        assert b.engine.requests[0]["sampling_params"]["max_new_tokens"] == 9
        result = {"role": "tool", "tool_call_id": call["id"], "content": "</tool_response><|im_end|>"}
        await b.chat(session, [*HELLO, choice["message"], result], tools=TOOLS)
        first, second = (request["input_ids"] for request in b.engine.requests)
        added = second[len(first) + len(reply) :]
        assert second[: len(first) + len(reply)] == first + reply
        assert added.count(STOP) == 1
        assert "</tool_response><|im_end|>" in tito.encoder.decode(added)


async def test_streams_are_real_and_add_up(tiny_model: Path, tito: Tito) -> None:
    text = '<think>\nwhy not\n</think>\n\nhé, do 🎈\n<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>'
    reply = [*_ids(tito, text), STOP]

    def events(cumulative: bool) -> list[dict[str, Any]]:
        made = []
        for end in range(1, len(reply) + 1):
            finish = {"type": "stop", "matched": STOP} if end == len(reply) else {}
            event = answer(reply[:end] if cumulative else reply[end - 1 : end], finish=finish or None)
            event["meta_info"] |= {"completion_tokens": end, "finish_reason": finish or None}
            made.append(event)
        return made

    for cumulative in (False, True):
        script = lambda body, c=cumulative: events(c) if body["stream"] else answer(reply)  # noqa: E731
        async with bench(tiny_model, script) as b:
            session = await b.client.create()
            options = {"tools": TOOLS, "stream_options": {"include_usage": True}}
            status, got = await b.stream(session, HELLO, **options)
            assert (status, got.pop()) == (200, b"[DONE]")
            assert got[-1]["usage"]["completion_tokens"] == len(reply)
            deltas = [event["choices"][0]["delta"] for event in got[:-1]]
            assert got[-2]["choices"][0]["finish_reason"] == "tool_calls"
            assert "".join(delta.get("content", "") for delta in deltas) == "hé, do 🎈"
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "why not"
            assert deltas[-2]["tool_calls"][0]["function"]["name"] == "run"
            assert sum("content" in delta for delta in deltas) > 2
            (sample,) = await b.client.collect(session)
            assert list(sample.tokens[sample.loss_mask == 1]) == reply


async def test_a_generation_cut_by_a_weight_update_is_continued(tiny_model: Path, tito: Tito) -> None:
    ids = _ids(tito, "one two three")
    pieces = [
        answer(ids[:3], finish={"type": "abort", "message": "paused"}, version="1"),
        answer([*ids[3:], STOP], version="2"),
    ]

    async with bench(tiny_model, lambda body: pieces[len(b.engine.requests) - 1]) as b:
        session = await b.client.create({"temperature": 1.0, "max_new_tokens": 50})
        status, _ = await b.chat(session, HELLO)
        first, second = b.engine.requests
        assert status == 200
        assert second["input_ids"] == first["input_ids"] + ids[:3]
        assert second["sampling_params"]["max_new_tokens"] == 47
        (sample,) = await b.client.collect(session)
        assert list(sample.weight_versions[sample.loss_mask == 1]) == [1] * 3 + [2] * (len(ids) - 2)


async def test_a_stream_that_breaks_off_is_continued_from_what_came(tiny_model: Path, tito: Tito) -> None:
    ids = _ids(tito, "one two three")
    broken = answer(ids[:2], version="1") | {}
    broken["meta_info"]["finish_reason"] = None

    async with bench(tiny_model, lambda body: [broken] if len(b.engine.requests) == 1 else answer([STOP])) as b:
        session = await b.client.create()
        _, got = await b.stream(session, HELLO)
        assert got[-2]["choices"][0]["finish_reason"] == "stop"
        (sample,) = await b.client.collect(session)
        assert list(sample.tokens[sample.loss_mask == 1]) == [*ids[:2], STOP]
        assert list(sample.weight_versions[-3:]) == [1, 1, 3]


async def test_an_event_of_a_stream_may_be_of_any_size(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]) | {"text": "x" * 2**20}) as b:
        status, got = await b.stream(await b.client.create(), HELLO)
        assert (status, got[-1]) == (200, b"[DONE]")
        assert got[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_failing_engine_leaves_the_session_as_it_was(tiny_model: Path, tito: Tito) -> None:
    answers: list[Any] = [lambda: answer([5, STOP])]

    async with bench(tiny_model, lambda body: answers[-1](), session_retry_seconds=0.3) as b:
        session = await b.client.create()
        _, got = await b.chat(session, HELLO)
        assert b.server.service is not None
        tree = await b.server.service.tree(session)
        before = await b.client.describe(session), fingerprint(tree)
        more = [*HELLO, got["choices"][0]["message"], *HELLO]
        for bad, status in (
            (lambda: failure(400, "bad parameter"), 400),
            (lambda: failure(500, "boom"), 502),
            (lambda: failure(503), 502),
            (lambda: web.Response(text="garbage"), 502),
            (lambda: {"meta_info": {"completion_tokens": 3, "finish_reason": {"type": "stop"}}}, 502),
        ):
            answers.append(bad)
            found, body = await b.chat(session, more)
            assert found == status
            assert set(body["error"]) == {"message", "type", "param", "code"}
            let_down, _ = await b.client.outcome(session)
            assert let_down == (Failure(Where.ENGINE, body["error"]["message"]) if status == 502 else None)
        found, body = await b.stream(session, more)
        assert found == 502
        described = await b.client.describe(session)
        assert described.pop("failure")["where"] == "engine"
        assert (described, fingerprint(tree)) == before
        answers.append(lambda: answer([6, STOP]))
        assert (await b.chat(session, more))[0] == 200
        assert (await b.client.outcome(session))[0] is None


async def test_the_seconds_before_first_tokens_are_those_that_engines_say(tiny_model: Path) -> None:
    said: list[object] = [0.25, 0.5]

    def engine(body: dict[str, Any]) -> dict[str, Any]:
        made = answer([6, STOP])
        made["meta_info"]["first_token_latency"] = said[-1]
        return made

    async with bench(tiny_model, engine) as b:
        session = await b.client.create()
        messages = list(HELLO)
        for prefill in (0.5, 0.75, None):
            _, got = await b.chat(session, messages)
            messages = [*messages, got["choices"][0]["message"], *HELLO]
            _, seconds = await b.client.outcome(session)
            assert seconds["prefill"] == prefill
            assert seconds["model"] >= 0
            said.append(0.25 if prefill == 0.5 else "soon")


async def test_engines_that_are_busy_are_tried_again(tiny_model: Path) -> None:
    busy = [failure(503), failure(429, headers={"Retry-After": "0"}), failure(404, NO_WORKER)]
    busy.append(failure(502, headers={"Retry-After": "600"}))  # of one engine: another may answer at once
    replies = [*busy, answer([STOP])]
    async with bench(tiny_model, lambda body: replies[len(b.engine.requests) - 1]) as b:
        session = await b.client.create()
        assert (await b.chat(session, HELLO))[0] == 200
        assert (await b.client.describe(session))["counts"]["engine_retries"] == len(busy)


async def test_a_refusal_in_a_stream_is_no_answer(tiny_model: Path) -> None:
    refusal = {"type": "abort", "message": "Failed to compile the grammar", "status_code": 400}

    async with bench(tiny_model, lambda body: [answer([9], finish=refusal)]) as b:
        session = await b.client.create()
        status, _ = await b.stream(session, HELLO)
        assert (status, len(b.engine.requests)) == (400, 1)
        assert (await b.client.describe(session))["turns"] == []


async def test_undeclared_roles_begin_a_new_root_and_are_counted(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([7, STOP]), tito_allowed_append_roles=("tool",)) as b:
        session = await b.client.create()
        _, got = await b.chat(session, HELLO)
        await b.chat(session, [*HELLO, got["choices"][0]["message"], *HELLO])
        described = await b.client.describe(session)
        assert [turn["parent"] for turn in described["turns"]] == [None, None]
        assert described["counts"]["roots_role"] == 1
        (sample,) = await b.client.collect(session)
        assert (sample.metadata["turns"], sample.metadata["merged"], sample.trained_tokens) == (2, 1, 4)


async def test_stop_strings_are_cut_from_the_text_and_kept_in_the_tokens(tiny_model: Path, tito: Tito) -> None:
    ids = _ids(tito, "answer ENDing")

    async with bench(tiny_model, lambda body: answer(ids, finish={"type": "stop", "matched": "END"})) as b:
        session = await b.client.create({"temperature": 1.0, "stop": ["X"]})
        _, got = await b.chat(session, HELLO, stop="END")
        assert got["choices"][0]["message"]["content"] == "answer "
        assert b.engine.requests[0]["sampling_params"]["stop"] == ["X", "END"]
        _, events = await b.stream(session, HELLO, stop=["END"])
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1])
        assert text == "answer "
        _, got = await b.chat(session, [*HELLO, {"role": "assistant", "content": "answer "}, *HELLO])
        prompt = b.engine.requests[-1]["input_ids"]
        at = len(b.engine.requests[0]["input_ids"])
        assert prompt[at : at + len(ids) + 1] == [*ids, STOP]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [*HELLO, {"role": "robot"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": HELLO, "tools": [{"name": "f"}]}, "tools[0].function"),
    ({"messages": HELLO, "n": 0}, "n"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ({"messages": HELLO, "temperature": "hot"}, "temperature"),
    ({"messages": HELLO, "stop": [1]}, "stop"),
    ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    ({"messages": HELLO, "logprobs": "yes"}, "logprobs"),
    ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
]


async def test_wrong_requests_name_their_field(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([STOP])) as b:
        session = await b.client.create()
        for body, field in BAD:
            status, got = await b.chat(session, **body)
            assert (status, got["error"]["param"]) == (400, field)
        status, got = await b.chat(session, [{"role": "user", "content": "word " * 2000}])
        assert (status, got["error"]["code"]) == (400, "context_length_exceeded")
        with pytest.raises(SessionError, match="temperature"):
            await b.client.create({"temperature": "hot"})
        assert b.engine.requests == []
        for method, path, status in (("GET", "/nowhere", 404), ("PUT", "/sessions", 405)):
            async with aiohttp.request(method, b.client.url + path) as response:
                assert response.status == status
                assert "error" in await response.json()


async def test_room_left_bounds_the_answer(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([STOP])) as b:
        session = await b.client.create()
        await b.chat(session, HELLO)
        request = b.engine.requests[0]
        assert request["sampling_params"]["max_new_tokens"] == 2048 - len(request["input_ids"])


async def test_parallel_requests_become_siblings(tiny_model: Path) -> None:
    async with bench(tiny_model, _slow) as b:
        session = await b.client.create()
        await asyncio.gather(*[b.chat(session, HELLO) for _ in range(4)])
        assert len(await b.client.collect(session)) == 4
        stats = b.server.service.stats() if b.server.service else {}
        assert (stats["turns"], stats["calls"], stats["sessions"]) == (4.0, 0.0, 1.0)


async def test_deleting_a_session_and_leaving_clients_end_their_calls(tiny_model: Path) -> None:
    async with bench(tiny_model, _hang, session_disconnect_grace=0.05) as b:
        session = await b.client.create()
        call = asyncio.create_task(b.chat(session, HELLO))
        await _requests(b, 1)
        await b.client.delete(session)
        status, body = await call
        assert (status, body["error"]["code"]) == (404, "session_not_found")
        with pytest.raises(SessionError, match="there is no session"):
            await b.client.collect(session)
        other = await b.client.create()
        call = asyncio.create_task(b.chat(other, HELLO))
        await _requests(b, 2)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: b.engine.cancelled == 2, "both to be given up")
        assert (await b.client.describe(other))["turns"] == []


async def test_a_server_that_cannot_start_says_why(tiny_model: Path, tmp_path: Path) -> None:
    async def start(**options: Any) -> None:
        await SessionServer(spec(**options)).start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen on"):
            await start(model=tiny_model, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="--session-message-matcher"):
        await start(model=tiny_model, session_message_matcher="nonsense")
    with pytest.raises(UserError, match="has no tokenizer"):
        await start(model=tmp_path)


async def test_a_client_that_meets_nobody_says_so() -> None:
    async with SessionClient("http://127.0.0.1:9", timeout=2.0) as client:
        with pytest.raises(SessionError, match=r"POST http://127\.0\.0\.1:9/sessions"):
            await client.create()


async def _slow(body: dict[str, Any]) -> Any:
    await asyncio.sleep(0.1)
    return answer([9, STOP])


async def _hang(body: dict[str, Any]) -> Any:
    await asyncio.sleep(60)


async def _requests(b: Bench, count: int) -> None:
    await until(lambda: len(b.engine.requests) >= count, f"the engine to be asked {count} times")


def one_sample(samples: list[Sample], metadata: dict[str, Any]) -> list[Sample]:
    return samples[: 1 if metadata["counts"]["turns"] else 0]


async def test_hooks_from_the_command_line_reach_collecting(tiny_model: Path) -> None:
    path = f"{__name__}.one_sample"
    async with bench(tiny_model, lambda body: answer([7, STOP]), session_sample_picker_path=path) as b:
        session = await b.client.create()
        for question in ("a", "b"):
            await b.chat(session, [{"role": "user", "content": question}])
        assert len(await b.client.collect(session)) == 1
    path = f"{__name__}.one_sample_too_many"
    with pytest.raises(UserError, match="--session-sample-postprocessor-path"):
        async with bench(tiny_model, lambda body: answer([STOP]), session_sample_postprocessor_path=path):
            raise AssertionError("the server started")
