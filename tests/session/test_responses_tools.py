"""Tools of the Responses API that are no plain functions: namespaces, and tools of free text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.dialects import Responses
from miles_lite.session.dialects.responses_body import ResponsesBody
from miles_lite.session.dialects.responses_tools import tools_of
from miles_lite.session.dialects.typed_json import read
from miles_lite.session.errors import ApiError
from miles_lite.tito import Tito
from tests.session.engine import bench
from tests.session.replies import saying

PATCH = "*** Begin Patch\n*** Add File: a\n+hé\n*** End Patch"
TOOLS: list[Any] = [
    {
        "type": "namespace",
        "name": "mcp__demo",
        "description": "A demo.",
        "tools": [{"type": "function", "name": "look"}],
    },
    {
        "type": "namespace",
        "name": "other",
        "tools": [{"type": "function", "name": "look"}, {"type": "custom", "name": "say"}],
    },
    {"type": "function", "name": "other__look", "parameters": {}},
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin hunk+ end"},
    },
    {"type": "web_search", "external_web_access": True},
]
CALLS = (
    '<tool_call>\n{"name": "mcp__demo__look", "arguments": {"word": "a"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "other__look", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "other__look_2", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "other__say", "arguments": {"input": "hi"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "apply_patch", "arguments": '
    '{"input": "*** Begin Patch\\n*** Add File: a\\n+hé\\n*** End Patch"}}\n'
    "</tool_call>"
)


def told(item: Any) -> tuple[Any, ...]:
    dumped = item.model_dump()
    return dumped["type"], dumped.get("namespace"), dumped["name"], dumped.get("arguments", dumped.get("input"))


EXPECTED = [
    ("function_call", "mcp__demo", "look", '{"word": "a"}'),
    ("function_call", None, "other__look", "{}"),
    ("function_call", "other", "look", "{}"),
    ("custom_tool_call", "other", "say", "hi"),
    ("custom_tool_call", None, "apply_patch", PATCH),
]


async def test_calls_go_back_as_the_client_named_them_and_its_conversation_is_one_sample(
    tiny_model: Path, tito: Tito
) -> None:
    async with bench(tiny_model, saying(tito, CALLS)) as b:
        session = await b.client.create()
        client = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0)
        b.closing.push_async_callback(client.close)
        items: list[Any] = [{"role": "user", "content": "go"}]
        for turn in range(4):
            asked: dict[str, Any] = {"model": "m", "input": items, "tools": TOOLS}
            if turn % 2:
                events: Any = [event async for event in await client.responses.create(**asked, stream=True)]
                output = events[-1].response.output
                done = [event.item for event in events if event.type == "response.output_item.done"]
                assert [told(item) for item in done] == EXPECTED
                inputs = [event.input for event in events if event.type == "response.custom_tool_call_input.done"]
                assert inputs == ["hi", PATCH]
            else:
                output = (await client.responses.create(**asked)).output
            assert [told(item) for item in output] == EXPECTED
            items += [item.model_dump(exclude_none=True) for item in output]
            items += [{"type": f"{item.type}_output", "call_id": item.call_id, "output": "ok"} for item in output]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1, 2]
        assert len(await b.client.collect(session)) == 1
        prompt = tito.encoder.decode(b.engine.requests[0]["input_ids"])
        shown = (
            "mcp__demo__look",
            "other__look",
            "other__look_2",
            "other__say",
            "apply_patch",
            "start: begin hunk+",
        )
        assert all(f'"{name}"' in prompt or name in prompt for name in shown)
        assert "A demo." in prompt
        assert "web_search" not in prompt


names = st.sampled_from(["a", "b", "a__b", "a_2", "a__a"])
plain = st.builds(lambda name, kind: {"type": kind, "name": name}, names, st.sampled_from(["function", "custom"]))
spaces = st.builds(lambda name, tools: {"type": "namespace", "name": name, "tools": tools}, names, st.lists(plain))


@given(tools=st.lists(plain | spaces, max_size=6))
def test_names_that_the_model_sees_are_unique_and_lead_back(tools: list[dict[str, Any]]) -> None:
    made = tools_of(read({"input": "", "tools": tools}, ResponsesBody).tools or ())
    shown = [function["function"]["name"] for function in made.functions]
    assert len(shown) == len(set(shown))
    back = [made.as_called(name) for name in shown]
    first = [(tool["name"], None, tool["type"] == "custom") for tool in tools if tool["type"] != "namespace"]
    rest = [
        (tool["name"], space["name"], tool["type"] == "custom")
        for space in tools
        if space["type"] == "namespace"
        for tool in space["tools"]
    ]
    assert [(one.name, one.namespace, one.custom) for one in back] == first + rest


@pytest.mark.parametrize(
    ("tool", "path"),
    [
        ({"type": "namespace"}, "tools[0].name"),
        ({"type": "namespace", "name": "a", "tools": [{"type": "mcp", "name": "b"}]}, "tools[0].tools[0].type"),
        ({"type": "namespace", "name": "a", "tools": [{"type": "function"}]}, "tools[0].tools[0].name"),
        ({"type": "local_shell"}, "tools[0].type"),
        ({"type": "brand_new"}, "tools[0].type"),
        ({"type": "custom", "name": "a", "format": {"type": "grammar"}}, "tools[0].format.definition"),
    ],
)
def test_tools_that_cannot_be_shown_are_refused(tool: dict[str, Any], path: str) -> None:
    with pytest.raises(ApiError) as refused:
        Responses().parse({"input": "go", "tools": [tool]})
    assert refused.value.param == path
