from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from miles_lite.agent.scan import Answer, Call, read_reply
from miles_lite.tito.json_object import first_object

texts = st.text() | st.text('{}"\\[]:, ntu')
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=4)
prose = st.text().filter(lambda text: "{" not in text)


@given(before=prose, value=objects, after=texts, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2))
def test_the_first_object_is_found_whatever_it_holds(
    before: str, value: dict[str, Any], after: str, ascii_only: bool, indent: int | None
) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert first_object(before + written + after) == written


@given(value=objects, data=st.data())
def test_a_beginning_of_an_object_is_none(value: dict[str, Any], data: st.DataObject) -> None:
    written = json.dumps(value)
    assert first_object(written[: data.draw(st.integers(0, len(written) - 1))]) is None


@given(text=texts)
def test_nothing_raises_and_a_fallback_is_the_whole_text(text: str) -> None:
    reply = read_reply(text)
    if isinstance(reply, Answer) and reply.fallback:
        assert reply.text == text.strip()


@given(before=prose, text=texts, after=texts)
def test_an_answer_may_hold_braces(before: str, text: str, after: str) -> None:
    assert read_reply(before + json.dumps({"answer": text}) + after) == Answer(text)


@given(name=st.text(min_size=1), arguments=objects)
def test_every_form_of_a_call_is_read(name: str, arguments: dict[str, Any]) -> None:
    call = Call(name, arguments)
    assert read_reply(json.dumps({"tool": name, "arguments": arguments})) == call
    tagged = json.dumps({"name": name, "arguments": arguments})
    assert read_reply(f"<tool_call>\n{tagged}\n</tool_call>") == call


def fell_back(text: str) -> bool:
    reply = read_reply(text)
    return isinstance(reply, Answer) and reply.fallback


def test_the_edges() -> None:
    assert read_reply('{"answer": {"n": [1]}}') == Answer('{"n": [1]}')
    assert read_reply('{"tool": "t"}') == Call("t", {})
    assert read_reply('{"tool": "t", "arguments": 3}') == Call("t", 3)
    assert read_reply('{"tool": "a"} {"tool": "b"}') == Call("a", {})
    assert read_reply('{"tool": ""}') == Answer('{"tool": ""}', fallback=True)
    assert fell_back("{'tool': 'single quotes'}")
    assert fell_back('} it said "{ {"answer": "x"}')
    assert fell_back("{" * 100_000 + "}" * 100_000)
