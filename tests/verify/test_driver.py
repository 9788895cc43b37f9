from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from miles_lite.tito.verification_cases import ROLES
from miles_lite.verify.driver import Driver, FailureMode, NoToolCall
from miles_lite.verify.plan import schedule

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
TALKING = {"role": "assistant", "content": "Sunny."}


class Model:
    """Replies in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: dict[str, Any]) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[list[str], str]] = []

    async def __call__(self, messages: Sequence[dict[str, Any]], tool_choice: str) -> dict[str, Any]:
        self.asked.append(([message["role"][0] for message in messages], tool_choice))
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def drive(model: Model, roles: Sequence[str], *, mode: FailureMode = FailureMode.ROLLBACK, cycles: int = 1) -> Driver:
    driver = Driver(model, mode)
    asyncio.run(driver.run(schedule(roles, cycles=cycles)))
    return driver


def test_every_call_gets_its_result_before_anything_else() -> None:
    driver = drive(Model(CALLING), ROLES)
    for place, message in enumerate(driver.messages[:-1]):
        if message.get("tool_calls"):
            following = driver.messages[place + 1 : place + 3]
            assert [each.get("tool_call_id") for each in following] == ["c1", "c2"]
    assert driver.events["append_tool"] == 12
    assert (driver.events["append_user"], driver.events["append_system"], driver.events["append_assistant"]) == (
        3,
        1,
        2,
    )
    assert driver.events["rollback"] == 2


def test_a_rollback_asks_again_what_was_asked() -> None:
    model = Model(CALLING)
    drive(model, ("tool",))
    assert [len(roles) for roles, _ in model.asked] == [2, 5, 5, 5]


def test_the_forced_final_forbids_tools() -> None:
    model = Model(CALLING)
    drive(model, ("tool", "user"))
    assert [choice for _, choice in model.asked] == ["auto"] * 6 + ["none"]


def test_without_a_call_a_reply_is_taken_back_three_times() -> None:
    driver = drive(Model(TALKING, TALKING, TALKING, CALLING), ("tool",))
    assert driver.events["rollback"] == 5
    with pytest.raises(NoToolCall, match=r"no tool call in 4 replies: 'Sunny.'"):
        drive(Model(TALKING), ("tool",))


@pytest.mark.parametrize(("mode", "event"), [("append_tool", "append_tool"), ("append_user", "append_user")])
def test_without_a_call_the_other_modes_append(mode: FailureMode, event: str) -> None:
    driver = drive(Model(TALKING), ("tool",), mode=mode)
    assert driver.events[event] == 1
