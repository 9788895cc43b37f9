from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.tito.parse import JsonCalls, Marks, Reply, ReplyParser, ReplyStream, ToolCall, parser_for
from miles_lite.tito.reasoning import Thoughts
from tests.models import CHAT_TEMPLATE
from tests.tito.parity import check_parity

TOOLS = [{"type": "function", "function": {"name": "run"}}]
PARSER = ReplyParser(Thoughts(), JsonCalls())
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
        (f"do {GOOD} then", Reply("do  then", "", (CALL,))),
        ("see <think>here</think>", Reply("see <think>here</think>")),
    ],
)
def test_replies(text: str, reply: Reply) -> None:
    assert _parse(text) == reply


@pytest.mark.parametrize(
    ("argument", "readable"),
    [
        ("NaN", False),
        ("-Infinity", False),
        ("1e999", False),
        ("9" * 400, False),
        ('"\\ud800"', False),
        ('{"\\ud800": 1}', False),
        ("[" * 50 + "]" * 50, False),
        ("[" * 5000 + "]" * 5000, False),
        ("[" * 49 + "]" * 49, True),
        ("9" * 40, True),
        ('"\\ud83c\\udf88 \\u0000"', True),
    ],
)
def test_a_call_has_arguments_that_every_client_can_read_and_send_back(argument: str, readable: bool) -> None:
    text = f'<tool_call>{{"name": "run", "arguments": {{"x": {argument}}}}}</tool_call>'
    reply = _parse(text)
    assert bool(reply.tool_calls) is readable
    assert reply.content == ("" if readable else text)
    assert ToolCall("run", f'{{"x": {argument}}}').well_formed is readable


def test_a_prompt_that_opened_the_reasoning_starts_inside_it() -> None:
    assert _parse("why\n</think>\n\nso", in_reasoning=True) == Reply("so", "why")


def test_nothing_is_a_call_without_tools_and_nothing_is_reasoning_without_tags() -> None:
    assert PARSER.parse(GOOD, tools=None, in_reasoning=False) == Reply(GOOD)
    plain = ReplyParser(None, None)
    assert plain.parse(f"<think>a</think>{GOOD}", tools=TOOLS, in_reasoning=False).content.startswith("<think>")


def test_the_template_names_its_parser() -> None:
    assert parser_for(CHAT_TEMPLATE) == PARSER
    assert parser_for("{{ messages }}") == ReplyParser(None, None)
    assert parser_for("<tool_call><function=x></tool_call>").calls is None


@given(text=replies, in_reasoning=st.booleans())
def test_calls_are_json_objects_and_text_is_unicode(text: str, in_reasoning: bool) -> None:
    reply = _parse(text, in_reasoning=in_reasoning)
    assert all(isinstance(json.loads(call.arguments), dict) and call.name for call in reply.tool_calls)
    for part in (reply.content, reply.reasoning, *(call.arguments for call in reply.tool_calls)):
        part.encode()


@given(text=replies, cuts=st.lists(st.integers(0, 60), max_size=8), in_reasoning=st.booleans())
def test_what_streams_adds_up_to_the_whole(text: str, cuts: list[int], in_reasoning: bool) -> None:
    check_parity(PARSER, text, cuts, tools=TOOLS, in_reasoning=in_reasoning)


@given(text=st.text("{<[a\n "), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_nothing_is_shown_that_may_turn_out_to_be_a_call(text: str, cuts: list[int]) -> None:
    for marks in (Marks(("<[", "a{")), Marks(("<a",), first="{"), Marks()):
        check_parity(ReplyParser(None, _Swallows(marks)), text, cuts, tools=TOOLS, in_reasoning=False)


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    stream = PARSER.stream(tools=TOOLS, in_reasoning=False)
    over = "<think>\nwhy not\n</think>\n\n"
    said = ["<think>\nwhy", "<think>\nwhy not\n", f"{over}go", f"{over}go on <to"]
    assert [stream.feed(text) for text in said] == [Reply("", "why"), Reply("", " not"), Reply("go"), Reply(" on")]


def test_a_stream_that_would_contradict_what_it_said_fails() -> None:
    stream = ReplyStream(Reply)
    stream.feed("The temperat")
    with pytest.raises(AssertionError, match="was said, and the reply is"):
        stream.finish(Reply("The temp is"))


class _Swallows:
    """Takes all from the first mark on for a call."""

    name = "swallows"

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def read(self, text: str, tools: object) -> tuple[str, tuple[ToolCall, ...]]:
        return "", (ToolCall("run", "{}"),)
