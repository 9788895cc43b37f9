"""The append surface of a template as one line; `surfaces.txt` holds those that a person has read and agrees with."""

from __future__ import annotations

from pathlib import Path

from miles_lite.tito.surface import AppendSurface, Verdict

FILE = Path(__file__).with_name("surfaces.txt")
_KINDS = {"stop": "stop", "glue": "glue", "overlapping stop": "overlap", "stop alias": "alias", "none": "none"}


def line_of(name: str, surface: AppendSurface) -> str:
    """`name join tool user system assistant options`; a verdict is a context, `!` and a law, or `~` with a warning."""
    join = surface.as_json()["join"]
    kind = _KINDS[join["kind"] if join else "none"]
    verdicts = [_verdict(surface.roles[role]) for role in ("tool", "user", "system", "assistant")]
    options = ",".join(f"{key}={value}" for key, value in surface.kwargs.items()) or "-"
    return " ".join([name, kind, *verdicts, options])


def expected() -> dict[str, str]:
    """The reviewed lines by template name, without remarks."""
    lines = [line.partition("#")[0].split() for line in FILE.read_text(encoding="utf-8").splitlines()]
    return {words[0]: " ".join(words) for words in lines if words}


def _verdict(verdict: Verdict) -> str:
    if verdict.law is not None:
        return f"!{verdict.law}"
    return verdict.context + ("~" if verdict.warning else "")
