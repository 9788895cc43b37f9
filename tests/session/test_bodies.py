"""What was seen of a body saves parsing it again, and never changes what the next one says."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.dialects.json_reuse import Bodies

texts = st.text(alphabet='ab"\\[]{},: \n\u00e9\u20ac', max_size=8) | st.just('","messages":[')
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("messages"), inner, max_size=2),
    max_leaves=6,
)
messages = st.builds(lambda text, more: {"role": "user", "content": text} | more, texts, st.dictionaries(texts, values))
members = st.lists(st.tuples(texts | st.just("messages") | st.just("tools"), values), max_size=2)
writers = st.sampled_from([orjson.dumps, lambda value: json.dumps(value).encode(), lambda value: _spaced(value)])


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Bodies of one client: mostly the conversation so far and more, now and then something else."""
    write, head, rest = draw(writers), draw(members), draw(members)
    said: list[Any] = []
    made = []
    for _ in range(draw(st.integers(1, 6))):
        change = draw(st.sampled_from(["grow", "grow", "grow", "same", "shrink", "other"]))
        if change == "grow":
            said = said + draw(st.lists(messages, min_size=1, max_size=3))
        elif change == "shrink":
            said = said[: draw(st.integers(0, len(said)))]
        elif change == "other":
            head, rest = draw(members), draw(members)
        made.append(_body(write, [*head, ("messages", said), *rest]))
    return made


@given(sent=st.lists(conversations(), min_size=1, max_size=3), cut=st.none() | st.integers(1, 40), data=st.data())
def test_a_body_says_what_the_parser_reads_in_it(sent: list[list[bytes]], cut: int | None, data: st.DataObject) -> None:
    """Conversations mixed, the last body broken off: then both refuse it."""
    turns = data.draw(st.permutations([number for number, made in enumerate(sent) for _ in made]))
    order = [sent[number].pop(0) for number in turns]
    bodies = Bodies()
    for raw in [*order, order[-1][:-cut]] if cut else order:
        try:
            expected = orjson.loads(raw)
        except orjson.JSONDecodeError:
            with pytest.raises(orjson.JSONDecodeError):
                bodies.read(raw, bodies.find_prefix(raw))
            continue
        body = bodies.read(raw, bodies.find_prefix(raw))
        assert body == expected
        assert not isinstance(body, dict) or list(body) == list(expected)
        if isinstance(body, dict) and isinstance(body.get("messages"), list):
            bodies.keep(raw, body["messages"])


@pytest.mark.parametrize(
    "rest",
    [
        {},
        {"model": "m", "temperature": 1.0},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": ["x"]}}}] * 20},
    ],
)
def test_messages_that_were_seen_are_the_same_objects(rest: dict[str, Any]) -> None:
    """Of the conversations that were sent last."""
    bodies = Bodies()
    talks = [[{"role": "user", "content": f"[1, 2] {n}"}, {"role": "assistant", "content": "]}"}] for n in range(5)]
    for said in talks:
        bodies.keep(orjson.dumps({"model": "m", "messages": said, **rest}), said)
    for number, said in enumerate(talks):
        further = {"model": "m", "messages": [*said, {"role": "tool", "content": "]"}], **rest, "seed": 1}
        body = bodies.read(orjson.dumps(further), bodies.find_prefix(orjson.dumps(further)))
        assert body == further
        same = [one is other for one, other in zip(body["messages"], said, strict=False)]
        assert same == [number > 0] * 2


def test_a_second_list_of_messages_replaces_the_first() -> None:
    """As for the parser, of whose two names the last counts."""
    bodies = Bodies()
    bodies.keep(b'{"messages":[{"a":1}]}', [{"a": 1}])
    assert bodies.read(
        b'{"messages":[{"a":1}],"messages":[{"b":1}]}',
        bodies.find_prefix(b'{"messages":[{"a":1}],"messages":[{"b":1}]}'),
    ) == {"messages": [{"b": 1}]}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[{"a":1}],"messages":[{"b":1}]}',
        b'{"messages":[{"a":1}],"\\u006dessages":[{"b":1}]}',
        b'{"metadata":{"messages":[]},"messages":[{"b":1}]}',
        b'{"messages":[],"tools":[1]}',
        b'{"tools":[{"x":[]}],"input":[{"b":1}]}',
    ],
)
def test_a_body_whose_messages_cannot_be_told_apart_is_not_remembered(raw: bytes) -> None:
    bodies = Bodies()
    bodies.keep(raw, orjson.loads(raw).get("messages", []))
    assert not bodies._seen


def _body(write: Any, fields: list[tuple[str, Any]]) -> bytes:
    """A JSON object, in which names may repeat."""
    return b"{%b}" % b", ".join(write(name) + b":" + write(value) for name, value in fields)


def _spaced(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
