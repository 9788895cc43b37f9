"""When verified sessions pass.

Invariant: a pure function of the reports; the first rule that is broken names the failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from miles_lite.tito.compare import BUGS
from miles_lite.verify.driven_sessions import Report


@dataclass(frozen=True, slots=True)
class Failure:
    """`type` is a word to search for, `text` says where and what."""

    type: str
    text: str


def judge(reports: Sequence[Report], *, roles: Sequence[str], threshold: float) -> Failure | None:
    """The first failure, None when all is well.

    Every session must have finished, rolled back, appended each declared role and stayed one conversation; one must
    have appended a tool result. No session may differ from its template outside of what the model wrote, and at most
    the share `threshold` of them within (reasoning that the template drops from its history aside).
    """
    return next(_failures(reports, roles, threshold), None)


def _failures(reports: Sequence[Report], roles: Sequence[str], threshold: float) -> Iterator[Failure]:
    if not reports:
        yield Failure("NoSamples", "nothing was run")
    for report in reports:
        if report.error is not None:
            yield Failure(report.error[0], f"sample {report.index}: {report.error[1]}")
    yield from _missing(reports, roles)
    for report in reports:
        begun = {reason: count for reason, count in report.roots.items() if reason != "first"}
        if begun:
            reasons = ", ".join(f"{reason} x{count}" for reason, count in begun.items())
            yield Failure("NewRoot", f"sample {report.index}: the session began anew ({reasons}) instead of appending")
        if report.mismatches is None:
            yield Failure("NotCompared", f"sample {report.index} has no tito_session_mismatch")
    yield from _differences(reports, threshold)


def _missing(reports: Sequence[Report], roles: Sequence[str]) -> Iterator[Failure]:
    wanted = ["rollback", *(f"append_{role}" for role in ("user", "system", "assistant") if role in roles)]
    for report in reports:
        missing = [event for event in wanted if not report.events.get(event)]
        if missing:
            yield Failure("MissingEvent", f"sample {report.index} has no {', '.join(missing)}")
    if not any(report.events.get("append_tool") for report in reports):
        yield Failure("MissingEvent", "no sample has append_tool")


def _differences(reports: Sequence[Report], threshold: float) -> Iterator[Failure]:
    for kind in BUGS:
        found = [(report, each) for report in reports for each in report.mismatches or () if each.type == kind]
        if found:
            report, first = found[0]
            texts = f"the template prints {first.expected_text!r}, the session holds {first.actual_text!r}"
            yield Failure(
                "TokenMismatch",
                f"{kind} x{len(found)}, first in sample {report.index}, segment {first.segment_index}: {texts}",
            )
    spelled = [report for report in reports if spells_otherwise(report)]
    ratio = len(spelled) / max(len(reports), 1)
    if ratio > threshold:
        first = next(each for each in spelled[0].mismatches or () if not each.is_bug and not each.by_design)
        texts = f"the template prints {first.expected_text!r}, the model wrote {first.actual_text!r}"
        yield Failure(
            "AssistantText",
            f"{len(spelled)} of {len(reports)} samples ({ratio:.0%}, allowed {threshold:.0%}) differ inside replies, "
            f"first in sample {spelled[0].index}: {texts}",
        )


def spells_otherwise(report: Report) -> bool:
    """Whether a reply is written unlike the template prints it, dropped reasoning aside."""
    return any(each.type == "assistant_text" and not each.by_design for each in report.mismatches or ())
