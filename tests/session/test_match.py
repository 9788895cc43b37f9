from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.session.errors import ApiError
from miles_lite.session.history.match import MATCHERS, canonical_arguments, matcher_named
from miles_lite.session.history.tree import Tree
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
        (_with(tool_calls=_call(arguments='{"a": 2, "b": [2]}')), True),
        (_with(tool_calls=_call(arguments="cut")), True),
        (_with(tool_calls=_call(arguments='{"a": 2, "b": [2]}', id="")), False),
        (_with(tool_calls=_call(name="g")), False),
        (_with(tool_calls=_call(id="c2")), False),
        (_with(tool_calls=_call() * 2), False),
        ({"role": "assistant", "content": ""}, False),
    ],
)
def test_replay_forgives_what_harnesses_omit_and_the_arguments_of_a_known_call(
    replayed: dict[str, Any], same: bool
) -> None:
    assert REPLAY.same_reply(STORED, replayed) is same


def test_the_published_matchers() -> None:
    respelled = _with(tool_calls=_call(arguments='{"b":[2],"a":1}'))
    assert [MATCHERS[name].same_reply(STORED, respelled) for name in MATCHERS] == [True, True, False, True, True]
    silent = {"role": "assistant", "content": "I look."}
    assert [MATCHERS[name].same_reply(STORED, silent) for name in MATCHERS] == [True, True, False, False, True]
    rewritten = _with(tool_calls=_call(arguments='{"a": 1, "b": [2], "replace_all": false}'))
    assert [MATCHERS[name].same_reply(STORED, rewritten) for name in MATCHERS] == [True, False, False, False, True]
    assert [MATCHERS[name].rewritten(STORED, rewritten) for name in MATCHERS] == [1, 0, 0, 0, 0]
    assert [MATCHERS[name].rewritten(STORED, respelled) for name in MATCHERS] == [0] * len(MATCHERS)
    result = {"role": "tool", "tool_call_id": "c1", "content": "ok"}
    renamed = {"role": "tool", "tool_call_id": "c2", "content": "ok", "name": "f"}
    assert [MATCHERS[name].same(result, renamed) for name in MATCHERS] == [False, False, False, False, True]
    with pytest.raises(
        UserError, match="--session-message-matcher nonsense: choose one of replay, replay_arguments, strict"
    ):
        matcher_named("nonsense")


def test_the_arguments_of_a_reply_that_a_harness_wrote_are_no_ones_to_change() -> None:
    assert not REPLAY.same(STORED, _with(tool_calls=_call(arguments='{"a": 2}')))


def _spellings(value: int | Decimal) -> st.SearchStrategy[str]:
    """Ways to write a number in JSON."""
    exact = Decimal(value)
    return st.integers(-400, 400).map(lambda shift: f"{exact.scaleb(-shift):f}e{shift}") | st.sampled_from(
        [f"{exact:f}", f"{exact:f}0" if "." in f"{exact:f}" else f"{exact:f}.00", f"{exact:e}", f"{exact:E}"]
    )


numbers = st.integers() | st.decimals(
    allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=6
)


@given(st.data(), numbers, numbers)
def test_numbers_compare_as_numbers(data: st.DataObject, one: int | Decimal, other: int | Decimal) -> None:
    with localcontext() as exact:
        exact.prec = 1000
        left, right = data.draw(_spellings(one)), data.draw(_spellings(other))
    ours, theirs = (canonical_arguments(f'{{"x": [{text}]}}') for text in (left, right))
    assert (ours == theirs) is (one == other)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("1e2", "100", True),
        ("-0.0", "0", True),
        ("0.1", "0.1000000000000000055", True),
        ("9007199254740993", "9007199254740992", False),
        ("9007199254740993", "9007199254740993.0", True),
        ("1e400", "1e401", False),
        ("1e999999999999999999999", "1e999999999999999999999", True),
        ("1", "true", False),
        ("0", "false", False),
        ("1", '"1"', False),
        ("1.0", '"1.0"', False),
        ("1e400", "null", False),
    ],
)
def test_numbers_that_are_nearly_equal(ours: str, theirs: str, same: bool) -> None:
    stored, replayed = (_with(tool_calls=_call(arguments=f'{{"x": {text}}}')) for text in (ours, theirs))
    assert MATCHERS["replay_arguments"].same_reply(stored, replayed) is same


def test_where_siblings_gave_out_one_id_the_arguments_decide() -> None:
    def calling(path: str) -> dict[str, Any]:
        function = {"name": "f", "arguments": f'{{"path": "{path}"}}'}
        calls = [{"id": "functions.f:0", "type": "function", "function": function}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    tree = Tree(REPLAY)
    first, second = grow(tree, [user("a")], calling("x")), grow(tree, [user("a")], calling("y"))
    for turn, path in ((first, "x"), (second, "y"), (first, "x")):
        assert tree.attach([user("a"), calling(path), user("b")], NOBODY).turn is turn
    assert tree.attach([user("a"), calling("z"), user("b")], NOBODY).turn is None


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
