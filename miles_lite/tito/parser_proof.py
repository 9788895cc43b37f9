"""Chooses the parser of a model's replies and proves it, as the append surface is proved.

What the chat template prints of a turn with a tool call is what a model writes; the parser has to read the call back.

Invariant: a parser that was named, or is a family's, is kept whatever is found; else the first of those at hand that
reads everything is taken. What is not read back is said in `Proof.flaw`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from miles_lite.process.json_types import JsonObject
from miles_lite.tito.cut_render import CompareError, written
from miles_lite.tito.families import Family, parsers_for, sglang_installed
from miles_lite.tito.parse import ReplyParser, parser_for
from miles_lite.tito.reasoning import CLOSE_THINK
from miles_lite.tito.render import RenderError
from miles_lite.tito.suffix import SuffixError
from miles_lite.tito.tito import NO_OPTIONS, Tito

ARGUMENTS: JsonObject = {"city": "Rome, Italy", "days": 3}
TOOLS: list[JsonObject] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
ASK = {"role": "user", "content": "Ask0 this."}
NAME: str = TOOLS[0]["function"]["name"]
CALL = {"id": "call00001", "type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
TURNS: tuple[JsonObject, ...] = (
    {"content": "", "tool_calls": [CALL]},
    {"content": "Said0 so.", "tool_calls": [CALL]},
    {"content": "Said0 so.", "reasoning_content": "Why0 think.", "tool_calls": [CALL]},
    {"content": "Said0 so.", "reasoning_content": "Why0 think."},
)


@dataclass(frozen=True, slots=True)
class Proof:
    """`flaw` says what of the template's own print the parser does not read; "" when it reads everything.

    `weight` is 0 without a flaw, 1 where calls are read and reasoning or content are not, 2 where calls are not.
    """

    parser: ReplyParser
    flaw: str = ""
    weight: int = 0


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a model writes to say `message`."""

    text: str
    inside: bool
    message: JsonObject


def with_parser(
    tito: Tito, template: str, row: Family | None, *, reasoning: str | None = None, tool_calls: str | None = None
) -> Tito:
    """With the parser that reads what the template prints, or the named ones. Raises UserError."""
    proof = choose_parser(tito, template, row, reasoning=reasoning, tool_calls=tool_calls)
    return replace(tito, parser=proof.parser, flaw=proof.flaw)


def choose_parser(
    tito: Tito, template: str, row: Family | None, *, reasoning: str | None = None, tool_calls: str | None = None
) -> Proof:
    """The named parsers, else the family's, else the first that reads what the template prints. Raises UserError."""
    turns = list(_turns(tito))
    named = (reasoning, tool_calls)
    if named == (None, None) and row is not None and sglang_installed():
        named = (row.reasoning, row.tool_calls)
    if named != (None, None):
        return _prove(_load(*named), turns)
    best: Proof | None = None
    for candidate in _candidates(template, calls=any("tool_calls" in turn.message for turn in turns)):
        proof = _prove(candidate, turns)
        if best is None or proof.weight < best.weight:
            best = proof
        if best.weight == 0:
            break
    assert best is not None
    return best


def _candidates(template: str, *, calls: bool) -> Iterator[ReplyParser]:
    """By the signs in the template, the built-in one, and where there are calls to read all that SGLang has."""
    signs, built_in = parsers_for(template), parser_for(template)
    if not sglang_installed():
        yield built_in
        return
    if signs != (None, None):
        yield _load(*signs)
    yield built_in
    if not calls:
        return
    from miles_lite.tito.sglang_parsers import every_sglang_parser

    yield from every_sglang_parser(built_in.reasoning, first=signs[0])


def _load(reasoning: str | None, tool_calls: str | None) -> ReplyParser:
    from miles_lite.tito.sglang_parsers import load_sglang_parser

    return load_sglang_parser(reasoning=reasoning, tool_calls=tool_calls)


def _turns(tito: Tito) -> Iterator[_Turn]:
    """What a model writes for each of TURNS that the template prints."""
    for turn in TURNS:
        message = {"role": "assistant", **turn}
        try:
            prompt = tito.first([ASK], tools=TOOLS)
            text = written(tito, [ASK, message], prompt.ids.tolist(), tools=TOOLS, options=NO_OPTIONS)
        except (RenderError, CompareError, SuffixError):
            continue
        if "tool_calls" not in turn or (NAME in text and ARGUMENTS["city"] in text):
            yield _Turn(text, prompt.opens_reasoning and CLOSE_THINK in text, message)


def _prove(parser: ReplyParser, turns: Sequence[_Turn]) -> Proof:
    for turn in turns:
        reply = parser.parse(turn.text, tools=TOOLS, in_reasoning=turn.inside)
        wanted = [ARGUMENTS for _ in turn.message.get("tool_calls", ())]
        found = [json.loads(call.arguments) for call in reply.tool_calls if call.name == NAME]
        if found != wanted:
            read = f"calls with {json.dumps(found)}" if found else "no call"
            by = f" by {parser.calls.name}" if parser.calls else ""
            return Proof(parser, f"of {turn.text!r}, which the template prints of a turn, {read} is read{by}", 2)
    return _prove_texts(parser, turns)


def _prove_texts(parser: ReplyParser, turns: Sequence[_Turn]) -> Proof:
    """Of content and reasoning."""
    for turn in turns:
        reply = parser.parse(turn.text, tools=TOOLS, in_reasoning=turn.inside)
        given = [text for field in ("reasoning_content", "content") if (text := turn.message.get(field))]
        before = turn.text.partition(NAME)[0]  # some templates print content after the calls, which is not read
        said = [text for text in (reply.reasoning.strip(), reply.content.strip()) if text]
        if said != [text for text in given if text in before]:
            flaw = f"of {turn.text!r}, which the template prints of a turn, {said} is read beside the calls"
            return Proof(parser, flaw, 1)
    return Proof(parser)
