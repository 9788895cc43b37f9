"""Where a session's time went: each request once, and each tool from its call to its result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from miles_lite.session.history.match import MATCHERS
from miles_lite.session.history.time_spent import time_spent
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn
from tests.session.trees import grow, output, user


def calls(*names: str) -> dict[str, Any]:
    called = [{"id": str(at), "function": {"name": name, "arguments": "{}"}} for at, name in enumerate(names)]
    return {"role": "assistant", "content": "", "tool_calls": called}


def results(reply: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in reply["tool_calls"]]


def add(tree: Tree, messages: list[dict[str, Any]], reply: dict[str, Any], *, at: float, prefill: float | None) -> Turn:
    """A turn of one second from `at` on."""
    place = tree.attach(messages, tree.turns[0].caller) if tree.turns else None
    if place is None:
        return grow(tree, messages, reply, at=at)
    ids, said = np.array([1, 2], np.int32), replace(output(at=at), prefill=prefill)
    return tree.commit(place, messages[place.matched :], reply=reply, prompt_ids=ids, drop=0, output=said)


def test_a_tool_takes_from_its_call_to_its_result_and_those_of_one_turn_share() -> None:
    tree, said = Tree(MATCHERS["replay"]), [user("a task")]
    for at, names in ((0.0, ("bash",)), (3.5, ("bash", "search")), (8.5, ())):
        reply = calls(*names) if names else {"role": "assistant", "content": "done"}
        add(tree, said, reply, at=at, prefill=0.25)
        said = [*said, reply, *(results(reply) if names else [])]
    assert [turn.parent is None for turn in tree.turns] == [True, False, False]
    spent = time_spent(tree)
    assert spent["model"] == pytest.approx(3.0)
    assert spent["tools"] == pytest.approx({"bash": 2.5 + 2.0, "search": 2.0})
    assert spent["prefill"] is None, "the first turn does not say"


def test_a_result_that_is_sent_twice_counts_once_and_a_users_word_is_no_tool() -> None:
    tree, reply = Tree(MATCHERS["replay"]), calls("bash")
    grow(tree, [user("a task")], reply, at=0.0)
    for at in (2.0, 9.0):
        add(tree, [user("a task"), reply, *results(reply)], {"role": "assistant", "content": f"{at}"}, at=at, prefill=1)
    add(tree, [user("a task"), reply, user("never mind")], {"role": "assistant", "content": "well"}, at=30, prefill=1)
    assert time_spent(tree)["tools"] == pytest.approx({"bash": 1.0})


def test_prefill_is_known_where_every_engine_says() -> None:
    tree = Tree(MATCHERS["replay"])
    for number in range(2):
        turn = grow(tree, [user(f"task {number}")], "well", at=0.0)
        object.__setattr__(turn.output, "prefill", 0.5)
    assert time_spent(tree) == {"model": pytest.approx(2.0), "prefill": pytest.approx(1.0), "tools": {}}
    assert time_spent(Tree(MATCHERS["replay"])) == {"model": 0, "prefill": None, "tools": {}}
