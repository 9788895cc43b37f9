"""`miles-lite verify template`: prints a line per case and a verdict; exit code 0 for PASS, 1 for FAIL.

Exit code 2 is UNDECIDED: without its tokenizer the template shows no control tokens, so that a refusal proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import again, option
from miles_lite.config.session_options import Session
from miles_lite.errors import UserError, user_error
from miles_lite.tito import AppendSurface, RenderError, Verdict
from miles_lite.tito.verification_cases import ROLES
from miles_lite.verify.subject import load_subject, read_options
from miles_lite.verify.template import Outcome, gaps, implied, run, verdict
from miles_lite.verify.trajectories import Thinking


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """what to verify: a template file, or a model folder"""

    template: str | None = option(None, help="chat template file (.jinja)")
    tokenizer: str | None = option(None, help="folder with the tokenizer that goes with --template")
    model: str | None = option(None, help="Hugging Face model folder: its own template and tokenizer")
    tito_model: str = again(Session, "tito_model")
    tito_allowed_append_roles: tuple[str, ...] = again(
        Session,
        "tito_allowed_append_roles",
        default=(),
        help="roles that must be appendable: tool user system assistant (tool is implied if the template has tools)",
    )
    thinking: Thinking = option(
        Thinking.BOTH, help="off: cases without reasoning; on: with; both: all, reasoning on and off"
    )
    chat_template_kwargs: str | None = option(None, help="template options, a JSON object")
    json: str | None = option(None, help="write the append surface and the outcomes to this file")


def main(argv: Sequence[str], prog: str = "miles-lite verify template") -> int:
    """Parse flags and verify; the exit code. Raises UserError."""
    options = take(parser_of(TemplateOptions, prog=prog).parse_args(list(argv)), TemplateOptions)
    if unknown := set(options.tito_allowed_append_roles) - set(ROLES):
        raise UserError(
            f"--tito-allowed-append-roles: no role {', '.join(sorted(unknown))}; there are {' '.join(ROLES)}"
        )
    given = read_options(options.chat_template_kwargs)
    try:
        subject = load_subject(
            template=options.template,
            tokenizer=options.tokenizer,
            model=options.model,
            family=options.tito_model,
            options=given,
        )
    except RenderError as error:
        return _report(
            options,
            AppendSurface(dict.fromkeys(ROLES, Verdict("renders", str(error))), None, "", given),
            [],
            framed=True,
        )
    print(f"{subject.name}: {subject.level}\n{subject.tito.table()}\n")
    outcomes = []
    declared = (*options.tito_allowed_append_roles, *implied(subject))
    for outcome in run(subject, thinking=options.thinking, declared=declared):
        print(outcome.line(), flush=True)
        outcomes.append(outcome)
    return _report(options, subject.tito.surface, outcomes, framed=subject.framed)


def _report(options: TemplateOptions, surface: AppendSurface, outcomes: list[Outcome], *, framed: bool) -> int:
    passed = sum(outcome.state == "PASS" for outcome in outcomes)
    tried = sum(outcome.state != "REFUSED" for outcome in outcomes)
    good, reason = _judged(options.tito_allowed_append_roles, surface, outcomes)
    print()
    for gap in gaps(outcomes):
        print(f"Not covered: {gap}")
    print(f"Results: {passed}/{tried} passed")
    undecided = not (good or framed)
    if undecided:
        reason += "; no control tokens were found in what the template prints around messages: give --tokenizer DIR"
    print(f"Verdict: {'PASS' if good else 'UNDECIDED' if undecided else 'FAIL'} - {reason}")
    if options.json is not None:
        _write(options.json, surface.as_json() | {"cases": [outcome.as_json() for outcome in outcomes]})
    return 0 if good else 2 if undecided else 1


def _judged(declared: Sequence[str], surface: AppendSurface, outcomes: list[Outcome]) -> tuple[bool, str]:
    """Whether all is well, and why or why not."""
    if not outcomes:
        return False, f"not even a plain chat: {surface.roles['user'].reason}"
    good, reason = verdict(outcomes)
    unproved = [role for role in declared if surface.roles[role].law is not None]
    if good and unproved:
        law = surface.roles[unproved[0]]
        return False, f"{unproved[0]} was declared and breaks the law {law.law}: {law.reason}"
    if good and surface.roles["user"].law == "opens":
        return False, f"opens: {surface.roles['user'].reason}"
    return good, reason


def _write(path: str, content: dict[str, object]) -> None:
    with user_error(f"--json {path}: cannot be written", OSError):
        Path(path).expanduser().write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
