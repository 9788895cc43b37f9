"""Laws of SGLang's parsers, for every name that its server takes.

They leave a bare `sglang` package behind, so that `test_sglang_parsers.py` runs this file in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_lite.tito.families import FAMILIES
from miles_lite.tito.harmony import HarmonyReasoning
from miles_lite.tito.parse import Reply, ReplyParser
from miles_lite.tito.reasoning import Thoughts
from miles_lite.tito.sglang_parsers import SGLangCalls, SGLangReasoning, load_sglang_parser
from tests.tito.parity import check_parity

EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "25"))
ANY: Any = load_sglang_parser(reasoning="qwen3", tool_calls="qwen25").calls
reasoning_parser = importlib.import_module("sglang.srt.parser.reasoning_parser")
NEEDS_A_TEMPLATE = "response_template"
CALLS = sorted(set(ANY._module.FunctionCallParser.ToolCallParserEnum) - {NEEDS_A_TEMPLATE})
REASONING = sorted(set(reasoning_parser.ReasoningParser.DetectorMap) - {NEEDS_A_TEMPLATE})
CHANNELS = ("muse", "inkling", "beam", "kimi_k3", "apertus2509", "cohere_command4", "ling3")
"""Reasoning of another shape than two tags: nothing of such a reply is shown before it is complete."""
PAIRS = sorted(
    {(row.reasoning, row.tool_calls) for row in FAMILIES.values() if row.reasoning}
    | {("qwen3", "qwen3_coder"), ("glm45", "glm45"), ("deepseek-v3", "deepseekv3"), (None, "llama3"), ("gemma4",) * 2}
    | {(None, name) for name in CALLS}
    | {(name, "hermes") for name in REASONING}
    | {(name, None) for name in REASONING},
    key=str,
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    for name in ("run", "temperature")
]
JSON = '{"name": "run", "arguments": {"city": "R\u00f6m, temp"}}'
GOOD = {
    "hermes": f"<tool_call>{JSON}</tool_call>",
    "qwen25": f"<tool_call>\n{JSON}\n</tool_call>",
    "qwen3_coder": "<tool_call>\n<function=run>\n<parameter=city>\nRöm, temp\n</parameter>\n</function>\n</tool_call>",
    "glm45": "<tool_call>run\n<arg_key>city</arg_key>\n<arg_value>Röm, temp</arg_value>\n</tool_call>",
    "glm47": "<tool_call>run<arg_key>city</arg_key><arg_value>Röm, temp</arg_value></tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.run:0<|tool_call_argument_begin|>"
    '{"city": "Röm, temp"}<|tool_call_end|><|tool_calls_section_end|>',
    "minimax-m2": '<minimax:tool_call>\n<invoke name="run">\n<parameter name="city">Röm, temp</parameter>\n'
    "</invoke>\n</minimax:tool_call>",
    "deepseekv3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n```json\n"
    '{"city": "Röm, temp"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseekv31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>run<｜tool▁sep｜>"
    '{"city": "Röm, temp"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseekv32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="run">\n'
    '<｜DSML｜parameter name="city" string="true">Röm, temp</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "llama3": '<|python_tag|>{"name": "run", "parameters": {"city": "Röm, temp"}}',
    "mistral": f"[TOOL_CALLS] [{JSON}]",
    "pythonic": '[run(city="Röm, temp")]',
    "lfm2": '<|tool_call_start|>[run(city="Röm, temp")]<|tool_call_end|>',
    "gpt-oss": "<|start|>assistant<|channel|>commentary to=functions.run <|constrain|>json<|message|>"
    '{"city": "Röm, temp"}',
    "gemma4": '<|tool_call>call:run{city:<|"|>Röm, temp<|"|>}<tool_call|>',
}
"""A call as each form writes it."""


def _tags(parser: ReplyParser) -> list[str]:
    """What the parser looks for, and halves of it."""
    found = {"<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "{"}
    if parser.calls is not None:
        found |= set(parser.calls.marks.anywhere)
    if isinstance(parser.calls, SGLangCalls):
        detector = parser.calls._module.FunctionCallParser.ToolCallParserEnum[parser.calls.name]()
        found |= {value for value in vars(detector).values() if isinstance(value, str) and 2 < len(value) < 60}
    if isinstance(parser.reasoning, Thoughts):
        found |= {parser.reasoning.opens, parser.reasoning.closes, parser.reasoning.ends or "<think>"}
    if isinstance(parser.reasoning, SGLangReasoning | HarmonyReasoning):
        found |= {
            "<|channel|>analysis<|message|>",
            "<|channel|>final<|message|>",
            "<|end|>",
            "<|start|>assistant",
            "<|message|>",
        }
        found |= {" to=functions.run", "<|channel|>commentary", "<|call|>", "<|return|>"}
    return sorted(found)


def _texts(parser: ReplyParser) -> st.SearchStrategy[str]:
    tags = _tags(parser)
    halves = [half for tag in tags for half in (tag[: len(tag) // 2], tag[len(tag) // 2 :]) if half]
    own = GOOD.get(parser.calls.name if parser.calls else "", GOOD["hermes"])
    calls = [own, own.replace("run", "walk"), own.replace("Röm", "</tool_call>"), own[:-1], own[len(own) // 3 :]]
    prose = ["\n", "\n\n", " ", "The temperature: 3 < 4 ", "[1]", "word", "é🎈", "\ufffd"]
    piece = st.sampled_from([*tags, *halves, *calls, *calls[:1] * 3, *prose]) | st.text(max_size=3)
    return st.lists(piece, max_size=8).map("".join)


@pytest.mark.parametrize(("reasoning", "calls"), PAIRS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_streams_adds_up_to_the_whole(reasoning: str | None, calls: str | None, data: st.DataObject) -> None:
    parser = load_sglang_parser(reasoning=reasoning, tool_calls=calls)
    text = data.draw(_texts(parser))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12) | st.just(list(range(len(text) + 1))))
    check_parity(parser, text, cuts, tools=TOOLS, in_reasoning=data.draw(st.booleans()))


@pytest.mark.parametrize("name", GOOD)
def test_a_call_is_read_and_the_text_before_it_shown_early(name: str) -> None:
    parser = load_sglang_parser(reasoning=None, tool_calls=name)
    text = f"Let me look.\n\n{GOOD[name]}"
    reply = parser.parse(text, tools=TOOLS, in_reasoning=False)
    assert (reply.content, [call.name for call in reply.tool_calls]) == ("Let me look.", ["run"])
    assert json.loads(reply.tool_calls[0].arguments) == {"city": "Röm, temp"}
    assert parser.stream(tools=TOOLS, in_reasoning=False).feed(text[:-1]) == Reply("Let me look.")


@pytest.mark.parametrize("name", sorted(set(REASONING) - {*CHANNELS, "gpt-oss", "minimax-append-think"}))
def test_reasoning_between_tags_is_shown_early_and_is_what_sglang_says(name: str) -> None:
    parser = load_sglang_parser(reasoning=name, tool_calls=None)
    thoughts: Any = parser.reasoning
    assert isinstance(thoughts, Thoughts)
    for text in (f"{thoughts.opens}why{thoughts.closes}so", f"{thoughts.opens}why", "so"):
        parsed = parser.parse(text, tools=None, in_reasoning=False)
        theirs = _sglang_reads(name, text)
        assert (parsed.reasoning, parsed.content) == theirs
    assert parser.stream(tools=None, in_reasoning=True).feed("why not").reasoning == "why not"


@pytest.mark.parametrize("name", CHANNELS)
def test_of_channels_nothing_is_shown_before_the_end(name: str) -> None:
    assert isinstance(load_sglang_parser(reasoning=name, tool_calls=None).reasoning, SGLangReasoning)


def _sglang_reads(name: str, text: str) -> tuple[str, str]:
    reasoning, content = reasoning_parser.ReasoningParser(name).parse_non_stream(text)
    return reasoning or "", content or ""
