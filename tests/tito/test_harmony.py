from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.tito.harmony import HarmonyCalls, HarmonyReasoning
from miles_lite.tito.parse import Reply, ReplyParser, ToolCall
from tests.tito.parity import check_parity

PARSER = ReplyParser(HarmonyReasoning(), HarmonyCalls())
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {}}}]
CALL = ToolCall("run", '{"cmd": "ls"}')
WHY = "<|channel|>analysis<|message|>Why<|end|>"
SO = "<|channel|>final<|message|>So"
OWN = '<|channel|>commentary to=functions.run <|constrain|>json<|message|>{"cmd": "ls"}'
PRINTED = ' to=functions.run<|channel|>commentary json<|message|>{"cmd": "ls"}'
TOLD = "<|channel|>commentary<|message|>I look<|end|>"
NEXT = "<|start|>assistant"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        (SO, Reply("So")),
        (f"{WHY}{NEXT}{SO}", Reply("So", "Why")),
        (f"{WHY}{NEXT}{OWN}", Reply("", "Why", (CALL,))),
        (f"{WHY}{NEXT}{OWN}<|call|>", Reply("", "Why", (CALL,))),
        (f"{WHY}{NEXT}{PRINTED}", Reply("", "Why", (CALL,))),
        (OWN, Reply("", "", (CALL,))),
        (PRINTED, Reply("", "", (CALL,))),
        (f"{TOLD}{NEXT}{WHY}{NEXT}{OWN}", Reply("I look", "Why", (CALL,))),
        (f"{WHY}{NEXT}{WHY}{NEXT}{SO}", Reply("So", "Why\nWhy")),
        (f"{SO}<|end|>{NEXT}{WHY}", Reply("So\nWhy")),
        ("<|channel|>analysis<|message|>never clo", Reply("", "never clo")),
        ("no channel at all", Reply("no channel at all")),
    ],
)
def test_replies(text: str, reply: Reply) -> None:
    assert PARSER.parse(text, tools=TOOLS, in_reasoning=False) == reply


@pytest.mark.parametrize("broken", [OWN.replace("run", "walk"), OWN[:-1], OWN.replace('{"cmd": "ls"}', "[1]")])
def test_what_is_no_call_stays_content(broken: str) -> None:
    reply = PARSER.parse(f"{WHY}{NEXT}{broken}", tools=TOOLS, in_reasoning=False)
    assert (reply.reasoning, reply.tool_calls) == ("Why", ())
    assert broken.partition("<|message|>")[2] in reply.content


def test_reasoning_and_the_final_channel_are_shown_while_they_grow() -> None:
    stream = PARSER.stream(tools=TOOLS, in_reasoning=False)
    texts = ["<|channel|>analysis<|message|>Wh", f"{WHY[:-2]}", f"{WHY}{NEXT}{SO}", f"{WHY}{NEXT}{SO} it is<|re"]
    assert [stream.feed(text) for text in texts] == [Reply("", "Wh"), Reply("", "y"), Reply("So"), Reply(" it is")]


_PIECES = [
    WHY,
    SO,
    OWN,
    PRINTED,
    TOLD,
    NEXT,
    "<|end|>",
    "<|call|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    " to=x",
    "a\n",
]


@given(
    text=st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=8).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_what_streams_adds_up_to_the_whole(text: str, cuts: list[int]) -> None:
    check_parity(PARSER, text, cuts, tools=TOOLS, in_reasoning=False)
