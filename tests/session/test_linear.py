"""The linear history policy, classified as its users know it: what extends, what is taken back, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miles_lite.session.errors import ApiError
from miles_lite.session.history import linear
from miles_lite.session.history.agent_identity import Caller, caller_of
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.history.turn_record import Turn
from miles_lite.tito.chat_messages import Message
from tests.session.engine import STOP, answer, bench, failure
from tests.session.trees import NOBODY, fingerprint, new_tree, output, said, user

S: dict[str, Any] = {"role": "system", "content": "s"}
U = user("u")
A1, A2 = said("a1"), said("a2")


def _place(tree: Tree, messages: Sequence[Message], caller: Caller) -> Place:
    """With a template that takes system messages anywhere; nothing but tool results may be appended."""

    def roles(appended: Sequence[Message]) -> set[str]:
        return {"system" if message["role"] == "developer" else message["role"] for message in appended}

    return linear.place(tree, messages, caller, allowed=frozenset({"tool"}), roles=roles)


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


def ask(tree: Tree, messages: list[dict[str, Any]], reply: str, *, at: float, caller: Caller = NOBODY) -> Turn:
    place = _place(tree, messages, caller)
    return tree.commit(
        place,
        messages[place.matched :],
        reply=said(reply),
        prompt_ids=np.arange(2, dtype=np.int32),
        drop=0,
        output=output(at=at),
    )


def stored() -> Tree:
    """[s, u, a1, t1, a2], both replies given by the session."""
    tree = new_tree()
    ask(tree, [S, U], "a1", at=0.0)
    ask(tree, [S, U, A1, tool("t1")], "a2", at=2.0)
    return tree


HELD = [S, U, A1, tool("t1"), A2]


@pytest.mark.parametrize(
    ("request_", "turn", "matched"),
    [
        ([*HELD, tool("t2")], 1, 5),
        (HELD, 1, 5),
        ([S, U, A1, tool("t1")], 0, 3),
        ([S, U, A1, tool("other")], 0, 3),
        ([S, U, A1], 0, 3),
    ],
    ids=[
        "extends",
        "generates again after the last reply",
        "takes back one",
        "takes back one and edits",
        "ends earlier",
    ],
)
def test_what_a_line_accepts(request_: list[dict[str, Any]], turn: int, matched: int) -> None:
    place = _place(stored(), request_, NOBODY)
    assert place.turn is not None
    assert (place.turn.number, place.matched) == (turn, matched)


@pytest.mark.parametrize(
    ("request_", "message", "code"),
    [
        ([S, U], r"rollback failed: discard_count=2", "rollback_failed"),
        ([S, user("other")], r"rollback failed: discard_count=2", "rollback_failed"),
        ([*HELD, {"role": "developer", "content": "d"}], r"allowed=\['tool'\]", "role_not_allowed"),
        ([S, U, A1, {"role": "developer", "content": "d"}], r"allowed=\['tool'\]", "role_not_allowed"),
        ([S, U, A1, tool("t1"), said("mine"), tool("t2")], r"allowed=\['tool'\]", "role_not_allowed"),
    ],
    ids=["two turns back", "another question", "a role", "one turn back, but a role", "a changed reply"],
)
def test_what_a_line_refuses_changes_nothing(request_: list[dict[str, Any]], message: str, code: str) -> None:
    tree = stored()
    before = fingerprint(tree)
    with pytest.raises(ApiError, match=message) as refused:
        _place(tree, request_, NOBODY)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert fingerprint(tree) == before
    assert _place(tree, [*HELD, tool("t2")], NOBODY).matched == 5


def test_the_first_turn_may_be_taken_back_and_a_planted_reply_is_a_question() -> None:
    tree = new_tree()
    ask(tree, [U], "a1", at=0.0)
    assert _place(tree, [U], NOBODY).turn is None
    tree = new_tree()
    ask(tree, [S, U, said("planted"), user("u2")], "a1", at=0.0)
    ask(tree, [S, U, said("planted"), user("u2"), A1, tool("t")], "a2", at=2.0)
    place = _place(tree, [S, U, said("planted"), user("u2"), A1], NOBODY)
    assert (place.turn, place.matched) == (tree.turns[0], 5)


def test_a_turn_is_taken_back_by_the_turn_in_its_stead() -> None:
    tree = stored()
    ask(tree, [S, U, A1, tool("t1")], "better", at=4.0)
    assert [tip.number for tip in linear.line_ends(tree)] == [2]
    place = _place(tree, [S, U, A1, tool("t1"), said("better"), tool("t2")], NOBODY)
    assert place.matched == 5
    with pytest.raises(ApiError, match="allowed"):
        _place(tree, [*HELD, tool("t2")], NOBODY)


def test_turns_that_overlapped_both_go_on() -> None:
    tree = stored()
    ask(tree, [S, U, A1, tool("t1")], "twin", at=2.5)
    assert [tip.number for tip in linear.line_ends(tree)] == [1, 2]
    for reply, number in (("a2", 1), ("twin", 2)):
        more = [S, U, A1, tool("t1"), said(reply), tool("t2")]
        place = _place(tree, more, NOBODY)
        assert place.turn is tree.turns[number]


def test_each_agent_has_its_own_line() -> None:
    tree = stored()
    other = [{"role": "system", "content": "another"}, U]
    assert _place(tree, other, NOBODY).turn is None
    assert _place(tree, [S, U], caller_of("helper", None)).turn is None
    ask(tree, other, "x", at=9.0)
    assert [tip.number for tip in linear.line_ends(tree)] == [1, 2]


async def test_a_refused_or_failed_request_leaves_the_service_as_it_was(tiny_model: Path) -> None:
    answers: list[Any] = [lambda: answer([5, STOP])]

    async with bench(tiny_model, lambda body: answers[-1](), use_session_server="v1", session_retry_seconds=0.2) as b:
        assert b.server.service is not None
        session, line = await b.client.create(), [S, U]
        for turn in range(3):
            _, got = await b.chat(session, line)
            line = [*line, got["choices"][0]["message"], user(f"u{turn}")]
        tree = await b.server.service.tree(session)
        before = fingerprint(tree)
        assert (await b.chat(session, [S, U]))[1]["error"]["code"] == "rollback_failed"
        status, got = await b.chat(session, [*line, {"role": "system", "content": "x"}])
        assert (status, got["error"]["code"]) == (400, "role_not_allowed")
        answers.append(lambda: failure(503))
        assert (await b.chat(session, line[:-2]))[0] == 502
        answers.append(lambda: answer([6, STOP]))
        assert fingerprint(tree) == before
        assert (await b.chat(session, line[:-2]))[0] == 200
        assert [tip.number for tip in linear.line_ends(tree)] == [3]
        (sample,) = await b.client.collect(session)
        assert sample.metadata["turns"] == 3
        assert sample.tokens[-2] == 6
