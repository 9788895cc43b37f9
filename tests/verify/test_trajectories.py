from __future__ import annotations

import pytest

from miles_lite.verify.trajectories import ROLES, SHAPES, THINKING_SHAPES, Thinking, boundaries, cases, conversation

ALL = {**SHAPES, **THINKING_SHAPES}


@pytest.mark.parametrize("name", ALL)
def test_every_tool_result_answers_a_call_of_the_turn_before(name: str) -> None:
    messages = conversation(ALL[name], thinking=name in THINKING_SHAPES)
    assert [message["role"] for message in messages] == [ROLES[letter] for letter in ALL[name]]
    called: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            assert called == []
            called = [call["id"] for call in message.get("tool_calls", [])]
            assert ("reasoning_content" in message) == (name in THINKING_SHAPES)
        elif message["role"] == "tool":
            assert message["tool_call_id"] == called.pop(0)
    assert called == []


def test_parallel_calls_have_different_ids_and_tools() -> None:
    calls = conversation(SHAPES["parallel_tools"], thinking=False)[2]["tool_calls"]
    assert len({call["id"] for call in calls}) == 3
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_date", "get_weather"]


def test_the_positions_are_those_after_assistant_turns() -> None:
    assert boundaries("suatauatat") == [3, 5, 7, 9]
    assert boundaries("suasua") == [3]
    assert boundaries("suatuasta") == [3, 6]


def test_a_case_ends_where_the_next_turn_begins() -> None:
    chosen = {(case.name, case.position): case for case in cases(Thinking.BOTH)}
    assert len(chosen) == 35
    first, second = chosen["multi_role_sequence", 3], chosen["multi_role_sequence", 6]
    assert (len(first.messages), first.roles) == (5, ("tool", "user"))
    assert (len(second.messages), second.roles) == (8, ("tool", "user", "system"))
    assert chosen["multi_turn_no_tool", 3].tools is None
    assert all(case.messages[case.position - 1]["role"] == "assistant" for case in chosen.values())


def test_thinking_chooses_cases() -> None:
    off, on = list(cases(Thinking.OFF)), list(cases(Thinking.ON))
    assert not any(case.thinking for case in off)
    assert all(case.thinking for case in on)
    assert len(off) + len(on) == len(list(cases(Thinking.BOTH)))
