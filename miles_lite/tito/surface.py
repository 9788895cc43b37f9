"""What may be appended after an assistant turn of a given template, as verification found it.

Invariant: a role without a law in its verdict kept every law at every boundary that the template renders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito.suffix import Join

Context = Literal["short", "real"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One role: which law it breaks (None: it is proved) and why; whether the short context gives the same suffix.

    `warning` is what to know of a proved role, such as that no generation prompt follows it.
    """

    law: str | None = None
    reason: str = ""
    context: Context = "short"
    warning: str = ""


@dataclass(frozen=True, slots=True)
class AppendSurface:
    """Verdicts per role, how plain turns are closed, what opens a reply, template options found or given.

    `join` is None when the template closes no turn in a way that can be continued; then no role is proved. `joins`: of
    several system messages at the beginning it does not print each in its place, so that they are joined.
    """

    roles: Mapping[str, Verdict]
    join: Join | None
    opening: str
    kwargs: JsonMapping
    joins: bool = False

    def proved(self, roles: Sequence[str]) -> bool:
        return all(role in self.roles and self.roles[role].law is None for role in roles)

    def context(self, roles: Sequence[str]) -> Context:
        return "short" if all(self.roles[role].context == "short" for role in roles) else "real"

    def as_json(self) -> JsonObject:
        """`{"surface": {role: {verdict, law, reason, context, warning}}, "join": ..., "kwargs": ...}`."""
        surface = {
            role: {
                "verdict": "ok" if verdict.law is None else "refused",
                "law": verdict.law,
                "reason": verdict.reason,
                "context": verdict.context,
                "warning": verdict.warning,
            }
            for role, verdict in self.roles.items()
        }
        join = None
        if self.join is not None:
            alias = list(self.join.alias) if self.join.alias else None
            join = {"kind": self._kind(), "closing": self.join.closing, "stop": self.join.stop, "alias": alias}
        return {"surface": surface, "join": join, "kwargs": dict(self.kwargs), "opening": self.opening}

    def table(self) -> str:
        """The surface for people: a line per role, then join and options."""
        lines = [f"  {'role':<10} {'append':<8} {'context':<8} law or remark"]
        for role, verdict in self.roles.items():
            remark = f"{verdict.law}: {verdict.reason}" if verdict.law else verdict.warning
            context = "-" if verdict.law else verdict.context
            state = "refused" if verdict.law else "ok"
            lines.append(f"  {role:<10} {state:<8} {context:<8} {_short(remark)}".rstrip())
        closing = "-" if self.join is None else repr(self.join.closing)
        lines.append(f"  a turn closes with {closing} ({self._kind()}); a reply opens with {self.opening!r}")
        if self.joins:
            lines.append("  several system messages at the beginning are joined into one")
        if self.kwargs:
            lines.append("  template options: " + ", ".join(f"{name}={value}" for name, value in self.kwargs.items()))
        return "\n".join(lines)

    def _kind(self) -> str:
        if self.join is None:
            return "none"
        if self.join.alias:
            return "stop alias"
        if self.join.stop is None:
            return "overlapping stop"
        return "glue" if self.join.closing.partition(self.join.stop)[2] else "stop"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."
