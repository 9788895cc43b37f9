from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.agent.tools import Tool, load_tools, parse_tools
from miles_lite.errors import UserError


def tool(**fields: Any) -> dict[str, Any]:
    return (
        {"name": "echo", "description": "Print text", "_exec": 'printf %s "$text"'}
        | {"parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}}
        | fields
    )


def one(**fields: Any) -> Tool:
    return parse_tools([tool(**fields)])[0]


def test_both_openai_shapes_mean_the_same(tmp_path: Path) -> None:
    flat, path = tool(), tmp_path / "tools.json"
    block = {"type": "function", "function": {key: flat[key] for key in ("name", "description", "parameters")}}
    shapes: list[Any] = [[flat], {"tools": [flat]}, [block | {"_exec": flat["_exec"]}]]
    tools = []
    for shape in shapes:
        path.write_text(json.dumps(shape))
        tools += load_tools(path)
    assert tools[0] == tools[1] == tools[2]


def test_the_models_line_lists_required_parameters_first_and_never_moves() -> None:
    properties = {"z": {"type": "integer"}, "a": {"type": ["string", "null"]}, "path": {"type": "string"}, "b": {}}
    for names in (list(properties), sorted(properties)):
        schema = {"type": "object", "properties": {name: properties[name] for name in names}, "required": ["path"]}
        line = one(name="read_file", description="Read\n a file", parameters=schema).line()
        assert line == "- read_file(path: string, a?: string|null, b?: any, z?: integer) Read a file"
    assert one(description="", parameters=None).line() == "- echo()"


def test_arguments_become_variables_in_alphabetical_or_given_order() -> None:
    schema = {"type": "object", "properties": {name: {} for name in "bac"}}
    values = {"c": "it's", "a": 1.5, "b": {"x": [True, None, "é"]}}
    default = one(parameters=schema, _exec="run").script(values)
    assert default == "a='1.5'\nb='{\"x\": [true, null, \"é\"]}'\nc='it'\\''s'\nrun\n"
    assert one(parameters=schema, _exec="run", _exec_args=["c", "a"]).script(values) == "c='it'\\''s'\na='1.5'\nrun\n"
    assert one(parameters=schema, _exec="run").script({}) == "run\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_exec": None}, "either _exec"),
        ({"_handler": len}, "either _exec"),
        ({"name": "rm -rf"}, "must match"),
        ({"name": None}, "must match"),
        ({"parameters": {"type": "object", "properties": {"a-b": {}}}}, "argument 'a-b' must match"),
        ({"parameters": {"type": "object", "properties": {"PATH": {}}}}, "variable of the shell"),
        ({"parameters": {"type": "object", "properties": {"BASH_ENV": {}}}}, "variable of the shell"),
        ({"parameters": {"type": "array"}}, "of type object"),
        ({"parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}}, "no valid JSON schema"),
        ({"_exec_args": ["other"]}, "_exec_args must be a list of names"),
        ({"_exec": None, "_handler": "nosuchmodule:run"}, "cannot load _handler"),
        ({"_exec": None, "_handler": "json:nosuchname"}, "cannot load _handler"),
    ],
)
def test_a_bad_schema_is_refused_at_load_with_its_place(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_tools([tool(name="first"), tool(**fields)], where="tools.json")
    assert str(caught.value).startswith("tools.json: tool 2")


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    with pytest.raises(UserError, match="cannot read"):
        load_tools(path)
    for text, message in (("{", "is not JSON"), ("{}", 'expected {"tools"'), ("[3]", "tool 1 is not an object")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_tools(path)
    path.write_text(json.dumps([tool(), tool()]))
    with pytest.raises(UserError, match="two tools are called echo"):
        load_tools(path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"text": "fine"}, None),
        ({}, "'text' is a required property"),
        ({"text": 3}, "$.text: 3 is not of type 'string'"),
        ([], "is not of type 'object'"),
        (None, "is not of type 'object'"),
        ({"text": "a\0b"}, "$.text: the text holds a NUL"),
        ({"text": "\ud800"}, "half of a surrogate"),
        ({"text": "x", "\ud800": 1}, "half of a surrogate"),
        ({"text": "x", "more": [{"deep": "\0"}]}, "$.more[0].deep: the text holds a NUL"),
        ({"text": json.loads("[" * 500 + "]" * 500)}, "nested deeper"),
    ],
)
def test_arguments_are_checked_in_words_for_the_model(arguments: Any, problem: str | None) -> None:
    found = one().problem(arguments)
    assert found is None if problem is None else problem in (found or "")


def test_a_schema_reaches_no_network() -> None:
    schema = {"type": "object", "properties": {"text": {"$ref": "http://127.0.0.1:9/schema.json"}}}
    assert "http://127.0.0.1:9" in (one(parameters=schema).problem({"text": "x"}) or "")


def test_handlers_are_callables_or_named_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def shout(text):\n    return text.upper()\n")
    handler = one(_exec=None, _handler=f"{tmp_path / 'mine.py'}:shout").handler
    assert handler is not None
    assert handler(text="a") == "A"
    assert one(_exec=None, _handler="json:dumps").handler is json.dumps
    assert one(_exec=None, _handler=len).handler is len


@given(
    st.dictionaries(st.sampled_from("abc"), st.recursive(st.none() | st.booleans() | st.text(), st.lists), max_size=3)
)
def test_checking_never_raises(arguments: dict[str, Any]) -> None:
    one().problem(arguments)
