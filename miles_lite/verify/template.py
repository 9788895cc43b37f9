"""Whether a chat template can be appended to: every trajectory at every boundary, on CPU, in seconds.

At each boundary a session is imitated and its buffer compared with the template's native render of the same messages
(`miles_lite.tito.compare`): what no assistant wrote must be the same, token by token.

Invariant: a case passes only when its buffer was compared. What the template or the append surface refuses is named,
and fails only for declared roles; a verdict is PASS only when a case passed and none failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito import RenderError, SuffixError, Tito
from miles_lite.tito.chat_messages import Message, Tools, normalise
from miles_lite.tito.compare import compare
from miles_lite.tito.cut_render import CompareError
from miles_lite.tito.render import names_read, unless_refused
from miles_lite.verify.imitated_session import imitate
from miles_lite.verify.subject import Subject
from miles_lite.verify.trajectories import Case, Thinking, cases

State = Literal["PASS", "FAIL", "REFUSED"]
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the option that turns reasoning on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: `remark` says why it failed or was refused, or what to know of a pass."""

    case: Case
    options: JsonMapping
    state: State
    remark: str = ""

    def line(self) -> str:
        mode = "".join(f" {name}={value}" for name, value in self.options.items())
        label = f"{self.case.name} N={self.case.position}{mode}"
        return f"[{self.state}] {label}" + (f": {self.remark}" if self.remark else "")

    def as_json(self) -> JsonObject:
        return {
            "case": self.case.name,
            "position": self.case.position,
            "options": dict(self.options),
            "state": self.state,
            "remark": self.remark,
        }


def run(subject: Subject, *, thinking: Thinking, declared: Sequence[str]) -> Iterator[Outcome]:
    """Every case of `thinking`. `declared` are the roles whose refusal is a failure; see `implied`."""
    instructed = _takes_system(subject.tito)
    for options in _modes(subject, thinking):
        for case in cases(thinking):
            case = case if instructed else case.without_system()
            state, remark = _check(subject.tito, case, options, frozenset(declared))
            yield Outcome(case, options, state, remark)


def implied(subject: Subject) -> tuple[str, ...]:
    """Roles declared without being named: tool, unless the template never mentions tools."""
    return ("tool",) if not subject.template or "tool" in subject.template else ()


def verdict(outcomes: Sequence[Outcome]) -> tuple[bool, str]:
    """(passed, the reason in a few words)."""
    failed = [outcome for outcome in outcomes if outcome.state == "FAIL"]
    passed = sum(outcome.state == "PASS" for outcome in outcomes)
    refused = len(outcomes) - passed - len(failed)
    tail = f", {refused} refused by the template or a law" if refused else ""
    if failed:
        return False, f"{len(failed)} of {passed + len(failed)} cases failed, first: {failed[0].line()[7:]}"
    if not passed:
        return False, f"nothing can be appended after an assistant turn: {outcomes[0].remark}"
    return True, f"what is appended is what the template prints in all {passed} cases{tail}"


def gaps(outcomes: Sequence[Outcome]) -> list[str]:
    """Which appended roles, beside tool, no passing case covers, with and without reasoning."""
    covered = {(each.case.thinking, frozenset(each.case.roles) - {"tool"}) for each in outcomes if each.state == "PASS"}
    subsets: list[tuple[str, ...]] = [(), ("user",), ("system",), ("user", "system")]
    return [
        ("thinking" if thinking else "no thinking") + ", " + (" + ".join(subset) or "tool alone")
        for thinking in sorted({each.case.thinking for each in outcomes})
        for subset in subsets
        if (thinking, frozenset(subset)) not in covered
    ]


def _modes(subject: Subject, thinking: Thinking) -> list[JsonObject]:
    """Template options to try: none for `off`, reasoning on for `on`, on and off for `both`."""
    read = names_read(subject.template)
    names = [name for name in SWITCHES if name in read and name not in subject.tito.surface.kwargs]
    if thinking == Thinking.OFF or not names:
        return [{}]
    return [dict.fromkeys(names, True)] + ([dict.fromkeys(names, False)] if thinking == Thinking.BOTH else [])


def _takes_system(tito: Tito) -> bool:
    """Whether a conversation may begin with a system message; Gemma's may not."""
    begin = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    return unless_refused(lambda: _render(tito, begin, None, {})) is not None


def _check(tito: Tito, case: Case, options: JsonMapping, declared: frozenset[str]) -> tuple[State, str]:
    try:
        native = _render(tito, case.messages, case.tools, options)
        surface = tito.surface_for(options)
    except RenderError as error:
        return "REFUSED", f"the template: {error}"
    for role in case.roles:
        law = surface.roles[role].law
        if law is not None:
            return "FAIL" if role in declared else "REFUSED", f"{role}: {law}: {surface.roles[role].reason}"
    if remark := _unprinted(case, native):
        return "REFUSED", remark
    try:
        buffer = imitate(tito, case.messages, tools=case.tools, options=options)
        found = compare(
            tito, case.messages, buffer.ids, buffer.sampled, tools=case.tools, options=options, open_turn=True
        )
    except (RenderError, SuffixError, CompareError) as error:
        return "FAIL", str(error)
    for each in found:
        if each.is_bug:
            texts = f"the template prints {each.expected_text!r}, a session holds {each.actual_text!r}"
            return "FAIL", f"{each.type} at segment {each.segment_index}: {texts} ({each.detail})"
    if any(not each.by_design for each in found):
        return "PASS", "the template rewrites earlier replies; a session keeps them"
    return "PASS", "the template drops earlier reasoning; a session keeps it" if found else ""


def _render(tito: Tito, messages: Sequence[Message], tools: Tools | None, options: JsonMapping) -> str:
    shaped = [normalise(message, tito.form) for message in messages]
    return tito.renderer.render(shaped, tools=tools, open_turn=True, options={**tito.surface.kwargs, **options})


def _unprinted(case: Case, native: str) -> str:
    """Says which call the template leaves out: some print one call of a turn."""
    for place, message in enumerate(case.messages):
        calls = message.get("tool_calls", [])
        printed = [all(value in native for value in call["function"]["arguments"].values()) for call in calls]
        if not all(printed):
            return f"the template prints {sum(printed)} of the {len(calls)} calls of messages[{place}]"
    return ""
