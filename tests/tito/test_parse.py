from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.tito.parse import Reply, ReplyStream, TagParser, ToolCall, parser_for
from tests.models import CHAT_TEMPLATE

TOOLS = [{"type": "function", "function": {"name": "run"}}]
PARSER = TagParser(thinks=True, calls=True)
CALL = ToolCall("run", '{"cmd": "ls"}')
GOOD = '<tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>'

pieces = st.one_of(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            GOOD,
            "<tool_call>{bad</tool_call>",
            '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "a", "arguments": {"x": "\\ud800"}}</tool_call>',
            "\n",
            " ",
            "<",
            "word",
        ]
    ),
    st.text(max_size=4),
)
replies = st.lists(pieces, max_size=8).map("".join)


def _parse(text: str, *, in_reasoning: bool = False) -> Reply:
    return PARSER.parse(text, tools=TOOLS, in_reasoning=in_reasoning)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("plain", Reply("plain")),
        ("<think>\nwhy\n</think>\n\nso", Reply("so", "why")),
        ("<think>never closed", Reply("", "never closed")),
        (f"do\n{GOOD}", Reply("do", "", (CALL,))),
        (f"{GOOD}\n{GOOD}", Reply("", "", (CALL,) * 2)),
        ("<tool_call>{bad}</tool_call>", Reply("<tool_call>{bad}</tool_call>")),
        ('<tool_call>{"name": "run"', Reply('<tool_call>{"name": "run"')),
        ("<tool_call>[1]</tool_call>", Reply("<tool_call>[1]</tool_call>")),
        (f"<tool_call>no</tool_call>{GOOD}", Reply("<tool_call>no</tool_call>", "", (CALL,))),
        (f"<think>x</think>{GOOD}", Reply("", "x", (CALL,))),
    ],
)
def test_replies(text: str, reply: Reply) -> None:
    assert _parse(text) == reply


def test_a_prompt_that_opened_the_reasoning_starts_inside_it() -> None:
    assert _parse("why\n</think>\n\nso", in_reasoning=True) == Reply("so", "why")


def test_nothing_is_a_call_without_tools_and_nothing_is_reasoning_without_tags() -> None:
    assert PARSER.parse(GOOD, tools=None, in_reasoning=False) == Reply(GOOD)
    plain = TagParser(thinks=False, calls=False)
    assert plain.parse(f"<think>a</think>{GOOD}", tools=TOOLS, in_reasoning=False).content.startswith("<think>")


def test_the_template_names_its_parser() -> None:
    assert parser_for(CHAT_TEMPLATE) == TagParser(thinks=True, calls=True)
    assert parser_for("{{ messages }}") == TagParser(thinks=False, calls=False)
    assert not parser_for("<tool_call><function=x></tool_call>").calls


@given(text=replies, in_reasoning=st.booleans())
def test_calls_are_json_objects_and_text_is_unicode(text: str, in_reasoning: bool) -> None:
    reply = _parse(text, in_reasoning=in_reasoning)
    assert all(isinstance(json.loads(call.arguments), dict) and call.name for call in reply.tool_calls)
    for part in (reply.content, reply.reasoning, *(call.arguments for call in reply.tool_calls)):
        part.encode()


@given(text=replies, cuts=st.lists(st.integers(0, 60), max_size=8), in_reasoning=st.booleans())
def test_what_streams_adds_up_to_the_whole(text: str, cuts: list[int], in_reasoning: bool) -> None:
    stream = ReplyStream(PARSER.stream(tools=TOOLS, in_reasoning=in_reasoning))
    deltas = [stream.feed(text[:cut]) for cut in sorted(cuts)]
    whole = _parse(text, in_reasoning=in_reasoning)
    deltas.append(stream.finish(whole))
    assert "".join(delta.content for delta in deltas) == whole.content
    assert "".join(delta.reasoning for delta in deltas) == whole.reasoning
