from __future__ import annotations

from typing import Any

import pytest

from miles_lite.tito.compare import BUGS, REASONING_DROPPED, Kind, Mismatch
from miles_lite.verify.driven_sessions import Report
from miles_lite.verify.judge import judge

ROLES = ("tool", "user", "system", "assistant")
EVENTS = {"rollback": 2, "append_tool": 3, "append_user": 2, "append_system": 1, "append_assistant": 2}


def report(**other: Any) -> Report:
    given: dict[str, Any] = {"index": 0, "events": dict(EVENTS), "roots": {"first": 1}, "mismatches": []}
    return Report(**(given | other))


def mismatch(kind: Kind, detail: str = "") -> Mismatch:
    return Mismatch(kind, 4, "as printed", "as held", detail)


def failure(*reports: Report, roles: tuple[str, ...] = ROLES, threshold: float = 0.2) -> str | None:
    found = judge(reports, roles=roles, threshold=threshold)
    return None if found is None else f"{found.type}: {found.text}"


def test_sessions_that_did_everything_and_differ_nowhere_pass() -> None:
    assert failure(report(), report(index=1)) is None


@pytest.mark.parametrize("event", ["rollback", "append_user", "append_system", "append_assistant"])
def test_every_session_must_have_every_event(event: str) -> None:
    lacking = report(index=1, events=EVENTS | {event: 0})
    assert failure(report(), lacking) == f"MissingEvent: sample 1 has no {event}"
    undeclared = event.removeprefix("append_")
    if undeclared != "rollback":
        assert failure(report(), lacking, roles=tuple(role for role in ROLES if role != undeclared)) is None


def test_one_session_must_have_a_tool_result() -> None:
    without = report(events=EVENTS | {"append_tool": 0})
    assert failure(report(), without) is None
    assert failure(without) == "MissingEvent: no sample has append_tool"


@pytest.mark.parametrize("kind", BUGS)
def test_one_difference_outside_of_replies_fails(kind: Kind) -> None:
    found = failure(*(report() for _ in range(50)), report(index=50, mismatches=[mismatch(kind)]))
    assert found is not None
    assert found.startswith(
        f"TokenMismatch: {kind} x1, first in sample 50, segment 4: the template prints 'as printed'"
    )


def test_differences_in_replies_fail_above_their_threshold() -> None:
    spelled = report(mismatches=[mismatch("assistant_text")])
    four = [report() for _ in range(4)]
    assert failure(*four, spelled) is None
    assert str(failure(*four, spelled, threshold=0.1)).startswith("AssistantText: 1 of 5 samples (20%, allowed 10%)")


def test_dropped_reasoning_is_no_difference() -> None:
    assert failure(report(mismatches=[mismatch("assistant_text", f"{REASONING_DROPPED}; more")])) is None


def test_what_was_not_compared_did_not_pass() -> None:
    assert failure(report(mismatches=None)) == "NotCompared: sample 0 has no tito_session_mismatch"
    assert failure(report(error=("ChatError", "HTTP 500"))) == "ChatError: sample 0: HTTP 500"
    assert failure() == "NoSamples: nothing was run"


def test_a_session_that_began_anew_fails() -> None:
    found = failure(report(roots={"first": 1, "role": 2}))
    assert found == "NewRoot: sample 0: the session began anew (role x2) instead of appending"
