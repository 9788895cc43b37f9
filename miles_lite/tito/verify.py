"""Laws that prove, before the first rollout, which roles may be appended after an assistant turn of a given template.

    renders     the template renders the role at all (what it refuses by an error of its own is no boundary)
    anchor/tail the renders give a suffix at all (see suffix.py)
    native      the native render of the whole conversation ends with the suffix
    conserve    every appended content is in the suffix once and in order
    no-leak     nothing old is in the suffix
    prefix      the messages before it that no assistant wrote are printed as before
    opens       it ends with the generation prompt (not asked of tool and assistant: some models go on without one)
    closes      every assistant turn is closed in the same way, calls or none
    seam        encode(prefix) + encode(suffix) = encode(prefix + suffix)

Invariant: a role is in the surface only when every boundary tried keeps every law.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from miles_lite.tito.encode import Encoder
from miles_lite.tito.render import Renderer, RenderError
from miles_lite.tito.suffix import Cut, Join, SuffixError, cut

ROLES = ("tool", "user", "system", "assistant")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
Context = Literal["short", "real"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One role: which law it breaks (None: it is proved) and why; whether the short context gives the same suffix."""

    law: str | None = None
    reason: str = ""
    context: Context = "short"


@dataclass(frozen=True, slots=True)
class AppendSurface:
    """What may be appended after an assistant turn, and how turns are closed."""

    roles: Mapping[str, Verdict]
    join: Join

    def proved(self, roles: Sequence[str]) -> bool:
        return all(role in self.roles and self.roles[role].law is None for role in roles)

    def context(self, roles: Sequence[str]) -> Context:
        return "short" if all(self.roles[role].context == "short" for role in roles) else "real"


class _Broken(ValueError):
    def __init__(self, law: str, reason: str) -> None:
        super().__init__(reason)
        self.law = law


@dataclass(frozen=True, slots=True)
class _Boundary:
    history: list[dict[str, Any]]
    appended: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def short_context(last: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A conversation as short as can be that ends like one whose last assistant turn is `last`."""
    reply: dict[str, Any] = {"role": "assistant", "content": "ok"}
    if last.get("tool_calls"):
        reply |= {"content": "", "tool_calls": last["tool_calls"]}
    return [{"role": "user", "content": "hi"}, reply]


def verify(renderer: Renderer, encoder: Encoder, *, options: Mapping[str, Any] | None = None) -> AppendSurface:
    """Try every role at boundaries with and without tools and reasoning. Raises RenderError when plain chat fails."""
    laws = _Laws(renderer, encoder, dict(options or {}))
    return AppendSurface(roles={role: laws.judge(role) for role in ROLES}, join=laws.join)


class _Laws:
    def __init__(self, renderer: Renderer, encoder: Encoder, options: dict[str, Any]) -> None:
        self.renderer, self.encoder, self.options = renderer, encoder, options
        self.control = encoder.control_pattern
        chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
        plain = self.cut(_Boundary(chat, [{"role": "user", "content": "go on"}], None))
        stop = self.control.search(plain.tail)
        self.join = Join(plain.tail, stop[0] if stop else None, plain.alias)
        closed, opened = (self.render(chat[:1], None, open_turn=open_turn) for open_turn in (False, True))
        self.opening = opened[len(closed) :] if opened.startswith(closed) else ""

    def judge(self, role: str) -> Verdict:
        context: Context = "short"
        boundaries, refused, reason = list(_boundaries(role)), 0, ""
        for boundary in boundaries:
            try:
                found = self.check(boundary, role)
                if self.short(boundary) != found.suffix:
                    context = "real"
            except RenderError as error:
                refused, reason = refused + 1, str(error)
            except SuffixError as error:
                law, _, why = str(error).partition(": ")
                return Verdict(law, why, context)
            except _Broken as error:
                return Verdict(error.law, str(error), context)
        return Verdict("renders", reason) if refused == len(boundaries) else Verdict(context=context)

    def check(self, boundary: _Boundary, role: str) -> Cut:
        found = self.cut(boundary)
        suffix, old, new = found.suffix, _contents(boundary.history), _contents(boundary.appended)
        native = self.render([*boundary.history, *boundary.appended], boundary.tools, open_turn=True)
        if not native.endswith(suffix):
            raise _Broken("native", "the native render does not end with the suffix")
        places = [suffix.find(text) for text in new]
        if -1 in places or places != sorted(places) or any(suffix.count(text) != 1 for text in new):
            raise _Broken("conserve", "an appended message is dropped, moved or doubled")
        if any(text in suffix for text in old):
            raise _Broken("no-leak", "an earlier message is printed again after the appended ones")
        before = self.render(boundary.history, boundary.tools, open_turn=False)
        if self._frames(before, boundary.history) != self._frames(native, boundary.history):
            raise _Broken("prefix", "appending changes how earlier messages are printed")
        if role in ("user", "system") and not (self.opening and suffix.endswith(self.opening)):
            raise _Broken("opens", "no generation prompt follows the appended message")
        if found.alias is None and not found.tail.endswith(self.join.closing):
            raise _Broken("closes", f"a turn closes with {found.tail!r}, a plain one with {self.join.closing!r}")
        self._seam(native[: len(native) - len(suffix)], suffix)
        return found

    def cut(self, boundary: _Boundary) -> Cut:
        return cut(
            self.renderer,
            boundary.history,
            boundary.appended,
            tools=boundary.tools,
            options=self.options,
            control=self.control,
        )

    def short(self, boundary: _Boundary) -> str | None:
        try:
            return self.cut(_Boundary(short_context(boundary.history[-1]), boundary.appended, boundary.tools)).suffix
        except (SuffixError, RenderError):
            return None

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, open_turn: bool) -> str:
        return self.renderer.render(messages, tools=tools, open_turn=open_turn, options=self.options)

    def _frames(self, text: str, history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """The text before all control tokens; each earlier message that no assistant wrote, with the token before it."""
        wanted = [message["content"] for message in history if message["role"] != "assistant"]
        frames, start, opener = [], 0, ""
        for match in [*self.control.finditer(text), None]:
            end = match.start() if match else len(text)
            if start == 0 or any(content in text[start:end] for content in wanted):
                frames.append((opener, text[start:end]))
            if match:
                opener, start = match[0], match.end()
        return frames

    def _seam(self, prefix: str, suffix: str) -> None:
        parts = [*self.encoder.encode(prefix), *self.encoder.encode(suffix)]
        if parts != list(self.encoder.encode(prefix + suffix)):
            raise _Broken("seam", "the tokenizer joins text across the start of the suffix")


def _contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [text for message in messages for text in (message.get("reasoning_content"), message["content"]) if text]


def _boundaries(role: str) -> Iterator[_Boundary]:
    """Conversations to try for one role; every content is unique, so that it can be looked for."""
    system: dict[str, Any] = {"role": "system", "content": "Sys0 rule."}
    asked: dict[str, Any] = {"role": "user", "content": "Ask0 this."}
    again: dict[str, Any] = {"role": "user", "content": "Ask1 more."}
    result = [{"role": "tool", "tool_call_id": f"call{n:05}", "content": f"Result{n} is."} for n in range(3)]
    thoughts: list[dict[str, Any]] = [{}, {"reasoning_content": "Why0 think."}]
    for thought in thoughts:
        said = {"role": "assistant", "content": "Said0 so.", **thought}
        called = {"role": "assistant", "content": "", "tool_calls": [_call(0)], **thought}
        twice = {"role": "assistant", "content": "Doing0 both.", "tool_calls": [_call(1), _call(2)], **thought}
        worked = [system, asked, called, result[0]]
        final = {"role": "assistant", "content": "Done0 now.", **thought}
        if role == "tool":
            yield _Boundary([system, asked, called], [result[0]], TOOLS)
            yield _Boundary([asked, called], [result[0]], TOOLS)
            yield _Boundary([*worked, twice], result[1:], TOOLS)
            yield _Boundary([*worked, final, again, twice], result[1:], TOOLS)
            continue
        new = {"role": role, "content": f"New0 {role}."}
        after = [again] if role == "assistant" else []
        for history, tools in (([system, asked, said], None), ([asked, said], None), ([*worked, final], TOOLS)):
            yield _Boundary(history, [new, *after], tools)
        if role == "system":
            yield _Boundary([system, asked, said], [new, again], None)
        if role == "assistant":
            yield _Boundary([system, asked, said], [{**new, "reasoning_content": "Why1 not."}], None)


def _call(number: int) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": f"City{number}"}}
    return {"id": f"call{number:05}", "type": "function", "function": function}
