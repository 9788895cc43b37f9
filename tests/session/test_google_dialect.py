"""Google generateContent through the official client, and over the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.dialects import Google
from miles_lite.session.dialects.google_input import camel
from miles_lite.session.dialects.google_schema import json_schema
from miles_lite.session.errors import ApiError
from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench, failure
from tests.session.replies import FUNCTION, ids_of, saying

genai = pytest.importorskip("google.genai", reason="requirements/clients.txt names google-genai")
types = genai.types
errors = pytest.importorskip("google.genai.errors")

USER = {"role": "user", "parts": [{"text": "go"}]}
SCHEMA = {"type": "OBJECT", "properties": {"cmd": {"type": "STRING", "nullable": True, "maxLength": "9"}}}
TOOLS: list[Any] = [{"function_declarations": [{"name": "run", "description": "Runs it", "parameters": SCHEMA}]}]


def _client(b: Bench, session: str) -> Any:
    options = types.HttpOptions(base_url=f"{b.client.url}/sessions/{session}", retry_options=None)
    client = genai.Client(api_key="-", http_options=options).aio
    b.closing.push_async_callback(client.aclose)
    return client


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("thoughts", [False, True])
async def test_a_stream_adds_up_to_the_plain_answer(tiny_model: Path, tito: Tito, cut: bool, thoughts: bool) -> None:
    async with bench(tiny_model, saying(tito, cut=cut)) as b:
        client = _client(b, await b.client.create())
        config = {"tools": TOOLS, "thinking_config": {"include_thoughts": thoughts}, "response_logprobs": True}
        asked: dict[str, Any] = {"model": "m", "contents": "go", "config": config}
        plain = await client.models.generate_content(**asked)
        chunks = [chunk async for chunk in await client.models.generate_content_stream(**asked)]
        assert len(chunks) > 5
        assert _parts([chunk.candidates[0] for chunk in chunks]) == _parts(plain.candidates)
        kinds = [kind for kind, _ in _parts(plain.candidates)]
        assert kinds == ["thought"] * thoughts + ["text", "call", "call"]
        assert plain.candidates[0].finish_reason == chunks[-1].candidates[0].finish_reason
        assert plain.candidates[0].finish_reason.value == ("MAX_TOKENS" if cut else "STOP")
        assert plain.usage_metadata == chunks[-1].usage_metadata
        assert plain.usage_metadata.cached_content_token_count == 1
        assert plain.candidates[0].logprobs_result == chunks[-1].candidates[0].logprobs_result
        sampled = plain.usage_metadata.candidates_token_count
        assert len(plain.candidates[0].logprobs_result.chosen_candidates) == sampled
        assert [part.thought_signature is not None for part in plain.candidates[0].content.parts].count(True) == 1


@pytest.mark.parametrize("thoughts", [False, True])
async def test_a_chat_with_tools_is_one_sample(tiny_model: Path, tito: Tito, thoughts: bool) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        config = {
            "tools": TOOLS,
            "system_instruction": "Be kind.",
            "thinking_config": {"include_thoughts": thoughts},
            "automatic_function_calling": {"disable": True},
        }
        chat = _client(b, session).chats.create(model="m", config=config)
        said: Any = "go"
        for turn in range(4):
            if turn % 2:
                calls: Any = []
                async for chunk in await chat.send_message_stream(said):
                    calls += chunk.function_calls or []
            else:
                calls = (await chat.send_message(said)).function_calls
            assert [call.args for call in calls] == [{"cmd": "ls"}, {"cmd": "pwd"}]
            said = [
                types.Part(
                    function_response=types.FunctionResponse(id=call.id, name=call.name, response={"output": "ok"})
                )
                for call in calls
            ]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1, 2]
        assert len(await b.client.collect(session)) == 1
        prompt = tito.encoder.decode(b.engine.requests[-1]["input_ids"])
        assert "Be kind." in prompt
        assert '{"maxLength": 9, "type": ["string", "null"]}' in prompt
        assert "<tool_response>\nok\n</tool_response>" in prompt


async def test_the_client_calls_functions_by_itself(tiny_model: Path, tito: Tito) -> None:
    heard: list[str] = []

    def run_command(cmd: str) -> str:
        """Runs it."""
        heard.append(cmd)
        return f"did {cmd}"

    call = '<tool_call>\n{"name": "run_command", "arguments": {"cmd": "ls"}}\n</tool_call>'

    def script(body: dict[str, Any]) -> Any:
        done = "did ls" in tito.encoder.decode(body["input_ids"])
        return answer([*ids_of(tito, "done" if done else call), STOP])

    async with bench(tiny_model, script) as b:
        session = await b.client.create()
        got = await _client(b, session).models.generate_content(
            model="m", contents="go", config={"tools": [run_command]}
        )
        assert (got.text, heard) == ("done", ["ls"])
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0]


async def test_choices_formats_counts_and_models(tiny_model: Path, tito: Tito) -> None:
    two = [{"function_declarations": [{**FUNCTION, "name": "run"}, {"name": "walk"}]}]

    def mode(mode: str, *names: str) -> dict[str, Any]:
        config: dict[str, Any] = {"mode": mode} | ({"allowed_function_names": list(names)} if names else {})
        return {"tools": two, "tool_config": {"function_calling_config": config}}

    cases: list[tuple[dict[str, Any], list[str], list[str]]] = [
        (mode("AUTO"), [], []),
        (mode("NONE"), [], []),
        (mode("ANY"), ["run", "walk"], []),
        (mode("ANY", "walk"), ["walk", '"stop_after_first": true'], ['"run"']),
        ({"response_mime_type": "application/json"}, ["json_schema"], []),
        ({"response_mime_type": "application/json", "response_schema": SCHEMA}, ['"cmd"'], ["STRING"]),
    ]

    async with bench(tiny_model, lambda body: answer([STOP])) as b:
        client = _client(b, await b.client.create())
        for config, words, absent in cases:
            await client.models.generate_content(model="m", contents="go", config=config)
            tag = b.engine.requests[-1]["sampling_params"].get("structural_tag", "")
            assert bool(tag) == bool(words)
            assert all(word in tag for word in words)
            assert not any(word in tag for word in absent)
        config = {"max_output_tokens": 7, "stop_sequences": ["END"], "top_k": 3}
        await client.models.generate_content(model="m", contents="go", config=config)
        params = b.engine.requests[-1]["sampling_params"]
        assert (params["max_new_tokens"], params["stop"], params["top_k"]) == (7, ["END"], 3)
        counted = await client.models.count_tokens(model="m", contents="go")
        assert counted.total_tokens == len(b.engine.requests[-1]["input_ids"])
        assert [model.name async for model in await client.models.list()] == [f"models/{tiny_model.name}"]
        assert (await client.models.get(model="gemini-x")).name == "models/gemini-x"


async def test_a_stream_without_sse_is_one_json_array(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito), keep_alive=0.05) as b, aiohttp.ClientSession() as http:
        url = f"{b.client.url}/sessions/{await b.client.create()}/v1beta/models/m:streamGenerateContent"
        async with http.post(url, json={"contents": [USER]}) as response:
            pieces = json.loads(await response.read())
        assert len(pieces) > 3
        assert pieces[-1]["candidates"][0]["finishReason"] == "STOP"
        async with http.post(f"{url}?alt=sse", json={"contents": [USER]}) as response:
            events = [json.loads(line[6:]) for line in (await response.read()).splitlines() if line]
        assert len(events) == len(pieces)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "contents"),
    ({"contents": []}, "contents"),
    ({"contents": [{"role": "system", "parts": []}]}, "contents[0].role"),
    ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png"}}]}]}, "contents[0].parts[0].inlineData"),
    ({"contents": [{"parts": [{"text": 5}]}]}, "contents[0].parts[0].text"),
    ({"contents": [{"role": "model", "parts": [{"functionCall": {}}]}]}, "contents[0].parts[0].functionCall.name"),
    ({"contents": [USER], "tools": [{"computerUse": {}}]}, "tools[0].computerUse"),
    ({"contents": [USER], "tools": [{"function_declarations": [{}]}]}, "tools[0].functionDeclarations[0].name"),
    ({"contents": [USER], "generation_config": {"candidate_count": 2}}, "generationConfig.candidateCount"),
    ({"contents": [USER], "cached_content": "cachedContents/x"}, "cachedContent"),
    (
        {"contents": [USER], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
        "toolConfig.functionCallingConfig",
    ),
]


async def test_errors_have_googles_shape(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: failure(503), session_retry_seconds=0.2) as b:
        session = await b.client.create()
        async with aiohttp.ClientSession() as http:
            for body, path in BAD:
                url = f"{b.client.url}/sessions/{session}/v1beta/models/m:generateContent"
                async with http.post(url, json=body) as response:
                    error = (await response.json())["error"]
                assert (response.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
                assert path in error["message"]
        client = _client(b, session)
        with pytest.raises(errors.ClientError, match="maximum context length"):
            await client.models.generate_content(model="m", contents="word " * 3000)
        with pytest.raises(errors.ServerError, match=r"UNAVAILABLE|INTERNAL"):
            await client.models.generate_content(model="m", contents="go")
        await b.client.delete(session)
        with pytest.raises(errors.ClientError, match="NOT_FOUND"):
            await client.models.generate_content(model="m", contents="go")


def test_results_without_ids_answer_their_calls_in_order() -> None:
    calls = [{"functionCall": {"name": name, "id": number}} for name, number in (("a", "1"), ("b", "2"), ("a", "3"))]
    results = [{"functionResponse": {"name": name, "response": {"x": name}}} for name in ("a", "a", "b", "c")]
    contents = [USER, {"role": "model", "parts": calls}, {"role": "user", "parts": results}]
    read = Google().parse({"contents": contents}).messages
    assert [message["tool_call_id"] for message in read[2:]] == ["1", "3", "2", ""]
    assert read[2]["content"] == '{"x": "a"}'
    apart = [{"role": "user", "parts": [result]} for result in results]
    assert Google().parse({"contents": [*contents[:2], *apart]}).messages == read


def test_thinking_is_the_templates_switch() -> None:
    for config, options in (
        ({}, {}),
        ({"thinkingBudget": 0}, {"enable_thinking": False}),
        ({"thinkingBudget": 512}, {}),
        ({"thinkingLevel": "LOW"}, {"reasoning_effort": "low"}),
    ):
        assert Google().parse({"contents": [USER], "generationConfig": {"thinkingConfig": config}}).options == options


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_cT", max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values)
def test_names_are_spelled_one_way(value: Any) -> None:
    assert camel(camel(value)) == camel(value)
    users = {"function_call": {"name": "a_b", "args": value}}
    assert camel(users) == {"functionCall": {"name": "a_b", "args": value}}


@given(value=json_values)
def test_json_schema_is_made_of_anything(value: Any) -> None:
    assert json_schema(json_schema(value)) == json_schema(value)
    plain = {"type": "object", "properties": {"type": {"type": "string"}, "nullable": {"type": "integer"}}}
    assert json_schema(plain) == plain
    with pytest.raises(ApiError):
        Google().parse({"contents": [USER], "tools": value if isinstance(value, str) else 5})


def _parts(candidates: list[Any]) -> list[tuple[str, Any]]:
    """Texts of one kind joined; calls without their ids."""
    made: list[tuple[str, Any]] = []
    for candidate in candidates:
        for part in candidate.content.parts or ():
            if part.function_call is not None:
                made.append(("call", (part.function_call.name, part.function_call.args)))
            elif part.text:
                kind = "thought" if part.thought else "text"
                if made and made[-1][0] == kind:
                    made[-1] = (kind, made[-1][1] + part.text)
                else:
                    made.append((kind, part.text))
    return made
