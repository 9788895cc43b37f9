"""Verified sessions on a real session server whose engine is a script: what passes, and what each flaw is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from miles_lite.tito import Tito
from miles_lite.tito.render import JinjaRenderer
from miles_lite.tito.verification_cases import ROLES
from miles_lite.verify.driven_sessions import Plan, Report, verify_sessions
from miles_lite.verify.driver import FailureMode
from miles_lite.verify.judge import judge
from miles_lite.verify.plan import schedule
from tests.models import CHAT_TEMPLATE
from tests.session.engine import bench
from tests.session.replies import saying

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THOUGHT = "<think>\nWhy not.\n</think>\n\n"


def writing(tito: Tito, called: str, said: str = "Sunny.", *, cut: bool = False) -> Callable[[dict[str, Any]], Any]:
    """An engine that writes `called` when it may call a tool, and `said` when the last words ask for words."""

    def script(body: dict[str, Any]) -> Any:
        last = tito.encoder.decode(body["input_ids"]).rpartition("<|im_start|>user")[2]
        return saying(tito, said if "in words" in last else called, cut=cut)(body)

    return script


def verified(
    model: Path,
    tito: Tito,
    script: Callable[[dict[str, Any]], Any],
    *,
    compared: Tito | None = None,
    declared: tuple[str, ...] = ROLES,
    stream: bool = True,
) -> list[Report]:
    plan = Plan(
        actions=schedule(ROLES, cycles=1),
        sampling={"temperature": 0.7},
        max_tokens=64,
        failure_mode=FailureMode.ROLLBACK,
        call_seconds=20.0,
        stream=stream,
    )

    async def run() -> list[Report]:
        async with bench(model, script, tito_allowed_append_roles=declared) as server:
            url = server.client.url
            return await verify_sessions([url], compared or tito, plan, samples=2, notify=lambda line: None)

    return asyncio.run(run())


def failure(reports: list[Report]) -> str | None:
    found = judge(reports, roles=ROLES, threshold=0.2)
    return None if found is None else f"{found.type}: {found.text}"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reply", [CALL, THOUGHT + CALL, f"Look.\n{CALL}\n{CALL}"])
def test_an_honest_server_passes(tiny_model: Path, tito: Tito, reply: str, stream: bool) -> None:
    reports = verified(tiny_model, tito, writing(tito, reply), stream=stream)
    assert failure(reports) is None
    for report in reports:
        assert report.mismatches == []
        assert report.roots == {"first": 1}
        assert report.events["rollback"] == 2
        assert report.turns == 1 + len(schedule(ROLES, cycles=1))


def test_turns_that_were_cut_are_closed_as_the_template_closes_them(tiny_model: Path, tito: Tito) -> None:
    reports = verified(tiny_model, tito, writing(tito, CALL, cut=True))
    assert failure(reports) is None
    assert all(report.mismatches == [] for report in reports)


def test_a_spelling_of_its_own_is_information(tiny_model: Path, tito: Tito) -> None:
    reports = verified(tiny_model, tito, writing(tito, CALL.replace('": ', '":')))
    assert {each.type for report in reports for each in report.mismatches or ()} == {"assistant_text"}
    assert str(failure(reports)).startswith("AssistantText: 2 of 2 samples (100%, allowed 20%)")


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (
            "'\\n<tool_response>\\n' + message.content",
            "'\\n<tool_response>\\n!' + message.content",
            "non_assistant_text",
        ),
        ("{{- '<|im_start|>user' }}", "{{- '<|endoftext|>user' }}", "special_token_type"),
        ("{{- '<|im_start|>user' }}", "{{- 'user' }}", "special_token_count"),
    ],
)
def test_another_template_than_the_servers_is_found(
    tiny_model: Path, tito: Tito, old: str, new: str, kind: str
) -> None:
    template = CHAT_TEMPLATE.strip()
    assert old in template
    tampered = replace(tito, renderer=JinjaRenderer(template.replace(old, new)))
    found = failure(verified(tiny_model, tito, writing(tito, CALL), compared=tampered))
    assert found is not None
    assert found.startswith(f"TokenMismatch: {kind} x")


def test_a_role_the_server_was_not_told_of_begins_anew(tiny_model: Path, tito: Tito) -> None:
    found = failure(verified(tiny_model, tito, writing(tito, CALL), declared=("tool", "user")))
    assert str(found).startswith("NewRoot: sample 0: the session began anew (role x")


def test_a_model_that_only_talks_fails(tiny_model: Path, tito: Tito) -> None:
    found = failure(verified(tiny_model, tito, writing(tito, "Sunny.")))
    assert found == "NoToolCall: sample 0: no tool call in 4 replies: 'Sunny.'"


def test_a_server_that_refuses_fails(tiny_model: Path, tito: Tito) -> None:
    found = failure(verified(tiny_model, tito, writing(tito, CALL * 30)))
    assert str(found).startswith("ChatError: sample 0: HTTP 400: ")
    assert "context" in str(found)
