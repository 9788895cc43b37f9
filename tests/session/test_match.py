from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.session.errors import ApiError
from miles_lite.session.match import MATCHERS, matcher_named
from miles_lite.session.tree import Tree
from tests.session.trees import NOBODY, grow, said, user

REPLAY = MATCHERS["replay"]
STORED = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "why",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": [2]}'}}],
}


def _with(**changes: Any) -> dict[str, Any]:
    return {**STORED, **changes}


def _call(**changes: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": '{"a": 1, "b": [2]}'} | changes
    return [{"id": function.pop("id", "c1"), "type": "function", "function": function}]


@pytest.mark.parametrize(
    ("replayed", "same"),
    [
        (STORED, True),
        ({"role": "assistant", "content": "I look."}, True),
        (_with(reasoning_content=None, provider_specific_fields={"x": 1}, refusal=None), True),
        (_with(content=""), True),
        (_with(content=" I look.\n"), True),
        (_with(content=[{"type": "text", "text": "I look."}]), True),
        (_with(tool_calls=_call(arguments='{"b":[2],"a":1}')), True),
        (_with(tool_calls=_call(arguments={"b": [2], "a": 1})), True),
        (_with(tool_calls=[{"index": 0, **_call()[0]}]), True),
        (_with(tool_calls=_call(id="")), True),
        (_with(content="You look."), False),
        (_with(reasoning_content="other"), False),
        (_with(tool_calls=_call(arguments='{"a": 2, "b": [2]}')), False),
        (_with(tool_calls=_call(name="g")), False),
        (_with(tool_calls=_call(id="c2")), False),
        (_with(tool_calls=_call() * 2), False),
        ({"role": "assistant", "content": ""}, False),
    ],
)
def test_replay_forgives_what_harnesses_omit_and_nothing_they_change(replayed: dict[str, Any], same: bool) -> None:
    assert REPLAY.same_reply(STORED, replayed) is same


def test_the_published_matchers() -> None:
    respelled = _with(tool_calls=_call(arguments='{"b":[2],"a":1}'))
    assert [MATCHERS[name].same_reply(STORED, respelled) for name in MATCHERS] == [True, False, True, True]
    silent = {"role": "assistant", "content": "I look."}
    assert [MATCHERS[name].same_reply(STORED, silent) for name in MATCHERS] == [True, False, False, True]
    with pytest.raises(UserError, match="--session-message-matcher nonsense: choose one of replay, strict"):
        matcher_named("nonsense")


def shouting(stored: dict[str, Any], replayed: dict[str, Any]) -> bool:
    return bool(str(stored["content"]).lower() == str(replayed["content"]).lower())


def broken(stored: dict[str, Any], replayed: dict[str, Any]) -> bool:
    raise KeyError("x")


def undecided(stored: dict[str, Any], replayed: dict[str, Any]) -> int:
    return 1


def test_a_users_matcher_decides() -> None:
    tree = Tree(matcher_named(f"{__name__}.shouting"))
    first = grow(tree, [user("a")], "one")
    grow(tree, [user("b")], "one")
    assert tree.attach([user("A"), said("ONE"), user("c")], NOBODY).turn is first
    assert tree.attach([user("A"), said("two"), user("c")], NOBODY).turn is None


def test_a_users_matcher_that_fails_is_named() -> None:
    for name, what in (("broken", "raised KeyError"), ("undecided", "returned 1, not True or False")):
        with pytest.raises(ApiError, match=rf"--session-message-matcher .*{name} {what}") as failed:
            matcher_named(f"{__name__}.{name}").same(user("a"), user("b"))
        assert failed.value.status == 500
    for missing in (f"{__name__}.missing", "no_such_package.fn"):
        with pytest.raises(UserError, match="--session-message-matcher"):
            matcher_named(missing)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(arguments=st.one_of(st.text(), json_values), content=st.text(), name=json_values)
def test_any_json_has_a_digest_and_equals_itself(arguments: Any, content: str, name: Any) -> None:
    calls = [{"function": {"name": "f", "arguments": arguments}}]
    message = {"role": "assistant", "content": content, "tool_calls": calls, "name": name}
    for matcher in MATCHERS.values():
        assert matcher.digest(message) == matcher.digest(dict(message))
        assert matcher.same_reply(message, dict(message))
