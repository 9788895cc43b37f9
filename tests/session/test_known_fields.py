"""Every field that a client's own types know is served, harmless, or refused by name; the documentation says which."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args, get_type_hints

import anthropic
import openai
import pytest
from anthropic.types import message_create_params as anthropic_messages
from anthropic.types.beta import (
    BetaOutputConfigParam,
    BetaThinkingConfigAdaptiveParam,
    BetaThinkingConfigEnabledParam,
)
from anthropic.types.beta import message_create_params as anthropic_beta
from anthropic.types.beta.beta_tool_union_param import BetaToolUnionParam
from openai.types.chat import chat_completion_tool_union_param as chat_tools
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from openai.types.responses.response_text_config_param import ResponseTextConfigParam
from openai.types.responses.tool_param import ToolParam
from openai.types.shared_params.reasoning import Reasoning

from miles_lite.session.dialects import DIALECTS, ChatCompletions, Google, Messages, Responses
from miles_lite.session.dialects.google_input import camel
from miles_lite.session.dialects.known_fields import FieldRule, Table
from miles_lite.session.errors import ApiError
from tests.session.engine import STOP, answer, bench
from tests.tito.material import package_folder

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
ASK: list[Any] = [{"role": "user", "content": "go"}]

genai = pytest.importorskip("google.genai.types", reason="requirements/clients.txt names google-genai")

SDK_ONLY = {"http_options", "should_return_http_response", "automatic_function_calling", "betas"}
"""What an SDK keeps to itself, or sends as a header."""
GOOGLE_TOP = {
    "system_instruction",
    "tools",
    "tool_config",
    "safety_settings",
    "cached_content",
    "labels",
    "store",
    "service_tier",
    "model_armor_config",
    "continuation_token",
    "automatic_continuation",
}
"""Fields of GenerateContentConfig that the SDK sends beside `generationConfig`."""


def typed(fields: Any, *, within: str = "") -> set[str]:
    return {within + name for name in fields.__annotations__}


def google() -> set[str]:
    names = set(genai.GenerateContentConfig.model_fields) - SDK_ONLY
    path = {name: name if name in GOOGLE_TOP else f"generationConfig.{name}" for name in names}
    tool_config = {f"toolConfig.{name}" for name in genai.ToolConfig.model_fields}
    return {camelled(name) for name in {*path.values(), *tool_config} - {"tool_config"}}


def camelled(name: str) -> str:
    return ".".join(next(iter(camel({part: None}))) for part in name.split("."))


def kinds(union: Any) -> set[str]:
    """What `type` may be in the types of a union."""
    found: set[str] = set()
    for one in get_args(union):
        hint = get_type_hints(one)["type"]
        found |= {*get_args(hint), *(inner for one in get_args(hint) for inner in get_args(one))}
    return {kind for kind in found if isinstance(kind, str)}


FIELDS: list[tuple[Table, set[str]]] = [
    (ChatCompletions.fields, typed(chat.CompletionCreateParamsBase) - {"stream_options"}),
    (Responses.fields, typed(responses.ResponseCreateParamsBase) - {"reasoning", "text"}),
    (Responses.fields, typed(Reasoning, within="reasoning.") | typed(ResponseTextConfigParam, within="text.")),
    (Messages.fields, typed(anthropic_messages.MessageCreateParamsBase) - {"thinking", "output_config"}),
    (Messages.fields, typed(anthropic_beta.MessageCreateParamsBase) - {"thinking", "output_config"}),
    (Messages.fields, typed(BetaOutputConfigParam, within="output_config.")),
    (Messages.fields, typed(BetaThinkingConfigEnabledParam, within="thinking.")),
    (Messages.fields, typed(BetaThinkingConfigAdaptiveParam, within="thinking.")),
    (Google.fields, google()),
]


@pytest.mark.parametrize(("table", "fields"), FIELDS)
def test_every_field_of_the_clients_types_is_in_the_table(table: Table, fields: set[str]) -> None:
    assert len(fields) > 2
    assert fields - table.rows.keys() == set()


def test_every_tool_of_the_clients_types_is_in_the_table() -> None:
    assert kinds(chat_tools.ChatCompletionToolUnionParam) == {"function", "custom"} == set(ChatCompletions.tools.rows)
    assert set(map(camelled, genai.Tool.model_fields)) - Google.tools.rows.keys() == set()
    for table, union in ((Responses.tools, ToolParam), (Messages.tools, BetaToolUnionParam)):
        assert len(kinds(union)) > 10
        assert [kind for kind in kinds(union) if table.kind(kind) is None] == []


def test_sglangs_own_fields_are_in_the_table() -> None:
    """Read in its source, which needs no engine to be imported."""
    file = package_folder("sglang") / "srt" / "entrypoints" / "openai" / "protocol.py"
    for name, table in (("ChatCompletionRequest", ChatCompletions.fields), ("ResponsesRequest", Responses.fields)):
        (found,) = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", "") == name]
        assert isinstance(found, ast.ClassDef)
        fields = {str(ast.unparse(node.target)) for node in found.body if isinstance(node, ast.AnnAssign)}
        fields = {field for field in fields if not field.startswith("_")}
        assert len(fields) > 20
        assert fields - {*table.rows, *(row.partition(".")[0] for row in table.rows)} == set()


BODIES: dict[type, dict[str, Any]] = {
    ChatCompletions: {"messages": ASK},
    Responses: {"input": "go"},
    Messages: {"messages": ASK, "max_tokens": 5},
    Google: {"contents": [{"role": "user", "parts": [{"text": "go"}]}]},
}


def rows(verdict: str) -> list[Any]:
    return [
        pytest.param(dialect, name, row, id=f"{dialect.__name__}-{name}")
        for dialect in DIALECTS.values()
        for name, row in dialect().fields.rows.items()
        if row.verdict == verdict
    ]


@pytest.mark.parametrize(("dialect", "name", "row"), rows("refused"))
def test_what_is_refused_is_refused_by_name_and_asking_for_nothing_is_fine(
    dialect: Any, name: str, row: FieldRule
) -> None:
    assert row.why
    for value in ("x", 7, {"a": 1}, ["b"], True):
        if row.asks(value):
            with pytest.raises(ApiError) as refused:
                dialect().parse(nested(name, value) | BODIES[dialect])
            assert (refused.value.status, refused.value.param, refused.value.code) == (400, name, row.code)
            assert row.why in refused.value.message
    empty: tuple[Any, ...] = (None, [], {}, "")
    for nothing in empty:
        assert dialect().parse(nested(name, nothing) | BODIES[dialect]).unknown == ()


@pytest.mark.parametrize(("dialect", "name", "row"), rows("harmless"))
def test_what_is_harmless_is_not_looked_at(dialect: Any, name: str, row: FieldRule) -> None:
    assert row.why
    plain = dialect().parse(BODIES[dialect])
    for value in ("x", 7, {"a": 1}, [["b"]]):
        parsed = dialect().parse(nested(name, value) | BODIES[dialect])
        assert (parsed.messages, parsed.tools, parsed.constraint, parsed.options, parsed.unknown) == (
            plain.messages,
            plain.tools,
            plain.constraint,
            plain.options,
            (),
        )


def nested(name: str, value: Any) -> dict[str, Any]:
    holder, dot, field = name.partition(".")
    return {holder: nested(field, value)} if dot else {name: value}


@pytest.mark.parametrize("dialect", DIALECTS.values())
def test_unknown_fields_are_told(dialect: Any) -> None:
    assert dialect().parse(BODIES[dialect] | {"unheard": 1, "newer": None}).unknown == ("unheard",)


async def test_unknown_fields_are_counted_or_refused(tiny_model: Path) -> None:
    async def run(unknown: str) -> tuple[int, Any, dict[str, int]]:
        async with bench(tiny_model, lambda body: answer([5, STOP]), session_unknown_fields=unknown) as b:
            session = await b.client.create()
            status, body = await b.chat(session, ASK, brand_new=1, reasoning={"newer": True})
            return status, body, (await b.client.describe(session))["counts"]

    status, _, counts = await run("ignore")
    assert (status, counts["unknown_fields"]) == (200, 2)
    status, body, counts = await run("refuse")
    assert (status, body["error"]["param"], counts) == (400, "brand_new", {})


async def test_clients_see_the_name_of_what_is_refused(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await b.client.create()
        async with openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0) as agent:
            with pytest.raises(openai.BadRequestError, match="logit_bias") as refused:
                await agent.chat.completions.create(model="m", messages=ASK, logit_bias={"5": 1})
            assert refused.value.param == "logit_bias"
        url = f"{b.client.url}/sessions/{session}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key="-", max_retries=0) as claude:
            with pytest.raises(anthropic.BadRequestError, match="thread is not served"):
                await claude.beta.messages.create(model="m", max_tokens=5, messages=ASK, thread={"type": "create"})
        assert b.engine.requests == []


def test_the_documentation_has_the_tables() -> None:
    """`python -m tests.session.test_known_fields` writes them."""
    assert documented() == PAGE.read_text(encoding="utf-8")


def documented() -> str:
    """The page with its tables as the code has them; each stands between its heading and the next."""
    text = PAGE.read_text(encoding="utf-8")
    for heading, dialect in DIALECTS.items():
        before, mark, rest = text.partition(f"### {heading}\n")
        assert mark, f"docs/dialects.md has no heading {heading}"
        after = rest[rest.index("\n#") :] if "\n#" in rest else ""
        text = before + mark + "\n" + table_text(dialect().fields, dialect().tools) + after
    return text


def table_text(fields: Table, tools: Table) -> str:
    lines = ["| Fields | | |", "|---|---|---|"]
    for prefix, table in (("", fields), ("tools: ", tools)):
        groups: dict[tuple[str, str], list[str]] = {}
        for name, row in table.rows.items():
            groups.setdefault((row.verdict, row.why), []).append(f"`{name}`")
        for verdict in ("served", "harmless", "refused"):
            lines += [
                f"| {prefix}{' '.join(names)} | {kind} | {why} |"
                for (kind, why), names in groups.items()
                if kind == verdict
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(documented(), encoding="utf-8")
