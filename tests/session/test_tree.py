from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.history.agent_identity import caller_of
from miles_lite.session.history.tree import Place
from tests.session.trees import NOBODY, fingerprint, grow, new_tree, said, user

SYSTEM = {"role": "system", "content": "s"}
A, B, C = user("a"), user("b"), user("c")


def test_a_request_attaches_to_the_deepest_turn_it_replays() -> None:
    tree = new_tree()
    first = grow(tree, [SYSTEM, A], "one")
    second = grow(tree, [SYSTEM, A, said("one"), B], "two")
    assert (second.parent, second.messages) == (first, (B,))
    place = tree.attach([SYSTEM, A, said("one"), B, said("two"), C], NOBODY)
    assert (place.turn, place.matched) == (second, 5)
    assert tree.attach([SYSTEM, A, said("one"), C], NOBODY).turn is first
    assert tree.attach([SYSTEM, A, said("one"), B, said("other"), C], NOBODY).turn is first


def test_a_retry_is_a_sibling_and_compaction_a_new_root() -> None:
    tree = new_tree()
    first = grow(tree, [SYSTEM, A], "one")
    retry = grow(tree, [SYSTEM, A, said("one"), B], "two")
    again = grow(tree, [SYSTEM, A, said("one"), B], "three")
    assert retry.parent is again.parent is first
    asked = tree.request_keys([first, retry, again])
    assert asked[1] == asked[2] != asked[0]
    compacted = grow(tree, [SYSTEM, user("summary"), said("one"), C], "four")
    assert compacted.parent is None
    assert compacted.messages == (SYSTEM, user("summary"), said("one"), C)
    assert tree.attach([SYSTEM, user("summary"), said("one"), C, said("four"), B], NOBODY).turn is compacted


def test_of_equal_siblings_the_latest_is_taken_and_the_deepest_wins() -> None:
    tree = new_tree()
    older = grow(tree, [A], "same")
    newer = grow(tree, [A], "same")
    assert tree.attach([A, said("same"), B], NOBODY).turn is newer
    child = tree.commit(
        Place(older, 2, NOBODY),
        [B],
        reply=said("deep"),
        prompt_ids=np.zeros(1, np.int32),
        drop=0,
        output=newer.output,
    )
    assert tree.attach([A, said("same"), B, said("deep"), C], NOBODY).turn is child


def test_an_assistant_message_the_harness_wrote_is_part_of_the_prompt() -> None:
    tree = new_tree()
    turn = grow(tree, [A, said("planted"), B], "one")
    assert turn.messages == (A, said("planted"), B)
    assert tree.attach([A, said("planted"), B, said("one"), C], NOBODY).turn is turn
    assert tree.attach([A, said("changed"), B, said("one"), C], NOBODY).turn is None


def test_other_tools_are_another_root() -> None:
    tree = new_tree()
    grow(tree, [A], "one")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert tree.attach([A, said("one"), B], caller_of(None, tools)).turn is None


def test_the_context_leaves_out_dropped_stop_tokens() -> None:
    tree = new_tree()
    first = grow(tree, [A], "one", prompt=2, size=3)
    second = grow(tree, [A, said("one"), B], "two", prompt=2, size=2, drop=1)
    assert list(tree.context(first)) == [0, 1, 100, 101, 102]
    assert list(tree.context(first, drop=1)) == [0, 1, 100, 101]
    assert list(tree.context(second)) == [0, 1, 100, 101, 0, 1, 100, 101]
    assert second.end == len(tree.context(second))
    assert len(tree.context(None)) == 0


moves = st.lists(
    st.tuples(st.sampled_from(["extend", "retry", "edit", "restart", "drop_reasoning"]), st.integers(0, 2))
)


@given(moves=moves)
def test_whatever_a_harness_does_the_context_of_a_turn_extends_its_parents(moves: list[tuple[str, int]]) -> None:
    tree = new_tree()
    messages: list[dict[str, Any]] = [SYSTEM, A]
    for number, (move, choice) in enumerate(moves):
        if move == "restart":
            messages = [SYSTEM, user(f"u{choice}")]
        elif move == "edit" and len(messages) > 3:
            messages = [*messages[:-2], said(f"edited{choice}"), user(f"u{choice}")]
        elif move == "retry" and len(messages) > 3:
            messages = messages[:-2]
        turn = grow(tree, messages, f"r{number}", prompt=1 + choice, size=2)
        history = tree.history(turn)
        assert history == [*messages, said(f"r{number}")]
        assert tree.attach([*history, B], NOBODY).turn is turn
        if turn.parent:
            before = tree.context(turn.parent)
            assert np.array_equal(tree.context(turn)[: len(before)], before)
        assert turn.end == len(tree.context(turn))
        messages = [*messages, said(f"r{number}"), user(f"u{choice}")]
    assert [turn.number for turn in tree.turns] == list(range(len(moves)))


def test_a_form_in_which_a_reply_was_sent_before_is_known_and_changes_nothing_else() -> None:
    tree = new_tree()
    call: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    reply: dict[str, Any] = {"role": "assistant", "content": "x", "reasoning_content": "why", "tool_calls": [call]}
    turn = grow(tree, [A], reply)
    respelled = {**call, "function": {"name": "f", "arguments": '{"a":1}'}}
    forms: list[dict[str, Any]] = [
        {"role": "assistant", "content": " x", "tool_calls": [respelled], "refusal": None},
        {"role": "assistant", "content": "x"},
        reply,
    ]
    before = fingerprint(tree)
    for form in [*forms, *forms, *reversed(forms)]:
        assert tree.attach([A, form, B], NOBODY).turn is turn
        for changed in ({**form, "content": "y"}, {**form, "role": "user"}, {**form, "reasoning_content": "other"}):
            assert tree.attach([A, changed, B], NOBODY).turn is None
    assert (tree.history(turn), fingerprint(tree)) == ([A, reply], before)


def test_turns_of_one_caller_share_its_tools() -> None:
    tree, tools = new_tree(), [{"type": "function", "function": {"name": "f"}}]
    first = grow(tree, [A], "one", caller=caller_of(None, tools, {}))
    again = grow(tree, [A, said("one"), B], "two", caller=caller_of(None, [dict(tools[0])], {}))
    thinking = grow(tree, [C], "three", caller=caller_of(None, [dict(tools[0])], {"enable_thinking": True}))
    assert again.parent is first
    assert again.caller.tools is thinking.caller.tools is first.caller.tools
    assert (again.caller.options, thinking.caller.options) == ({}, {"enable_thinking": True})
