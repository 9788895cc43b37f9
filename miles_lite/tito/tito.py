"""`Tito`: messages in, token ids out, for any model folder; what a model produced is never tokenized again.

Invariant: every id that `first` and `append` return comes from the template or from messages, and the ids of the turns
before are never touched but for `Suffix.drop`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Form, Message, Tools, normalise, text_of
from miles_lite.tito.control_tokens import Edges, Guard
from miles_lite.tito.discover import verify_best
from miles_lite.tito.encode import Encoder
from miles_lite.tito.laws import verify
from miles_lite.tito.parse import Reply, ReplyParser, ReplyStream, parser_for
from miles_lite.tito.render import JinjaRenderer, Renderer, unless_refused
from miles_lite.tito.short_context import ShortContexts, short_history
from miles_lite.tito.suffix import SuffixError, cut
from miles_lite.tito.surface import AppendSurface
from miles_lite.tito.system_messages import Arranged, arrange, needed, role_of

NO_OPTIONS: JsonMapping = {}


@dataclass(frozen=True, slots=True)
class Suffix:
    """What a turn adds to the context: int32 `ids`, after the last `drop` sampled tokens of the turn before are cut.

    `opens_reasoning`: the generation prompt has begun the reasoning, so the reply starts inside it. So many system
    messages were `joined` into the first one, or `placed` as messages of the user.
    """

    ids: np.ndarray
    drop: int = 0
    opens_reasoning: bool = False
    joined: int = 0
    placed: int = 0


@dataclass(frozen=True, slots=True)
class Tito:
    """One model's text: how to print it, encode it, append to it and read its replies.

    `flaw` says what the parser does not read of the template's own print, if there is something.
    """

    encoder: Encoder
    renderer: Renderer
    form: Form
    surface: AppendSurface
    parser: ReplyParser
    stop_ids: frozenset[int]
    _shorts: ShortContexts
    _surfaces: dict[str, AppendSurface] = field(default_factory=dict)
    _alike: dict[tuple[str, str], bool] = field(default_factory=dict)
    flaw: str = ""
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guard", Guard(self.encoder.control, Edges.of(self.renderer)))

    @classmethod
    def of(
        cls, encoder: Encoder, renderer: Renderer, template: str, *, options: JsonMapping, stop_ids: frozenset[int]
    ) -> Tito:
        """What may be appended is verified; replies are read in the format that the template shows signs of.

        Raises RenderError when not even a plain chat can be printed.
        """
        surface, form = cached_surface(renderer, encoder, options)
        return cls(encoder, renderer, form, surface, parser_for(template), stop_ids, ShortContexts(renderer))

    def table(self) -> str:
        """The append surface and how replies are read, for people."""
        names = [part.name for part in (self.parser.reasoning, self.parser.calls) if part is not None]
        reading = f"  replies are read by: {', '.join(names) or 'nothing, all of it is content'}"
        return f"{self.surface.table()}\n{reading}" + (f"\n  NOT READ: {self.flaw}" if self.flaw else "")

    def options_read(self, options: JsonMapping) -> JsonMapping:
        """Those that the renderer reads: the others would be verified for nothing."""
        reads: frozenset[str] | None = getattr(self.renderer, "reads", None)
        if not options or reads is None or options.keys() <= reads:
            return options
        return {name: value for name, value in options.items() if name in reads}

    def surface_for(self, options: JsonMapping) -> AppendSurface:
        """The surface under a request's template options, verified when they are first seen. Raises RenderError."""
        if not options:
            return self.surface
        key = _key(options)
        if key not in self._surfaces:
            merged = {**self.surface.kwargs, **options}
            self._surfaces[key] = verify(self.renderer, self.encoder, form=self.form, options=merged)
        return self._surfaces[key]

    def proved(self, roles: Sequence[str], options: JsonMapping = NO_OPTIONS) -> bool:
        """Whether all roles may be appended under these options."""
        surface = unless_refused(lambda: self.surface_for(options))
        return surface is not None and surface.proved(roles)

    def begin_alike(self, before: JsonMapping | None, now: JsonMapping) -> bool:
        """Whether a conversation begun under the options `before` (None: not known) is begun so under `now` too.

        Some templates print the effort of reasoning, or whether there is any, in front of all messages.
        """
        if before is None or before == now:
            return True
        pair = _key(before), _key(now)
        if pair not in self._alike:  # both are printed now, as some templates print the date
            self._alike[pair] = self._beginning(before) == self._beginning(now)
        return self._alike[pair]

    def _beginning(self, options: JsonMapping) -> str | None:
        """What the template prints of a first message; None where it takes none."""
        said = [normalise({"role": "user", "content": "hi"}, self.form)]
        merged = {**self.surface.kwargs, **options}
        return unless_refused(lambda: self.renderer.render(said, tools=None, open_turn=False, options=merged))

    def roles(self, appended: Sequence[Message], options: JsonMapping = NO_OPTIONS) -> set[str]:
        """The roles under which messages are printed after a turn; that of system messages is the surface's."""
        if not needed(appended, begins=False):
            return {str(message["role"]) for message in appended}
        surface = unless_refused(lambda: self.surface_for(options)) or self.surface
        return {role_of(message, surface) for message in appended}

    def arranged(self, messages: Sequence[Message], options: JsonMapping, *, begins: bool) -> Arranged:
        """The messages as the template takes them; `begins`: they begin the conversation. Raises RenderError."""
        if not needed(messages, begins=begins):
            return Arranged(messages)
        return arrange(messages, self.surface_for(options), begins=begins)

    def first(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        options: JsonMapping = NO_OPTIONS,
        open_turn: bool = True,
    ) -> Suffix:
        """The ids of a whole conversation, with the generation prompt when `open_turn`. Raises RenderError."""
        arranged = self.arranged(messages, options, begins=True)
        shaped = [normalise(message, self.form) for message in arranged.messages]
        merged = {**self.surface.kwargs, **options}
        (shaped, tools, values), mark = self.guard((shaped, tools, list(merged.values())))
        merged = dict(zip(merged, values, strict=True))
        text = self.renderer.render(shaped, tools=tools, open_turn=open_turn, options=merged)
        ids = self.encoder.encode(text, mark=mark)
        return Suffix(ids, 0, _opens_reasoning(text), arranged.joined, arranged.placed)

    def append(
        self,
        history: Sequence[Message],
        appended: Sequence[Message],
        *,
        stop: int | None,
        tools: Tools | None = None,
        options: JsonMapping = NO_OPTIONS,
    ) -> Suffix:
        """The ids that follow a sampled assistant turn, the last of `history`, when `appended` comes after it.

        Of `history` only the last message is read where the short context is proved (`History` makes use of that).
        `stop` is the stop token the turn ended by sampling, None when it was cut. Every appended role must be proved.
        Raises RenderError, SuffixError.
        """
        surface, control = self.surface_for(options), self.encoder.control_pattern
        if surface.join is None:
            raise SuffixError("tail: the template closes no turn in a way that can be continued")
        arranged = self.arranged(appended, options, begins=False)
        new = [normalise(message, self.form) for message in arranged.messages]
        before: list[JsonObject]
        rest, kwargs = None, dict(surface.kwargs)
        if surface.context([message["role"] for message in new]) == "short":
            before, tools = short_history(history[-1], self.form), None
            (before, new, values), mark = self.guard((before, new, list(kwargs.values())))
            kwargs = dict(zip(kwargs, values, strict=True))
            rest = self._shorts.rest(options=kwargs, key=_key(options) + mark)
        else:
            before = [normalise(each, self.form) for each in self.arranged(history, options, begins=True).messages]
            (before, new, values, tools), mark = self.guard((before, new, list(kwargs.values()), tools))
            kwargs = dict(zip(kwargs, values, strict=True))
        found = cut(self.renderer, before, new, tools=tools, options=kwargs, control=control, rest=rest)
        check_suffix(found.suffix, new, surface.opening)
        ended_by = None if stop is None else self.encoder.text_of(stop)
        drop, text = surface.join.after(found, control).glue(ended_by, found.suffix, control)
        ids = self.encoder.encode(text, mark=mark)
        return Suffix(ids, drop, _opens_reasoning(found.suffix), placed=arranged.placed)

    def as_suffix(self, ids: np.ndarray, drop: int) -> Suffix:
        """Ids that somebody has put into a context before, as they are."""
        return Suffix(ids, drop, _opens_reasoning(self.encoder.decode(ids)))

    def parse(
        self, ids: Sequence[int] | np.ndarray, *, tools: Tools | None = None, in_reasoning: bool = False
    ) -> Reply:
        """What sampled ids say; leave the stop token out. Never raises."""
        return self.parser.parse(self.encoder.decode(ids), tools=tools, in_reasoning=in_reasoning)

    def stream(self, *, tools: Tools | None = None, in_reasoning: bool = False) -> ReplyStream:
        return self.parser.stream(tools=tools, in_reasoning=in_reasoning)


def cached_surface(renderer: Renderer, encoder: Encoder, options: JsonMapping) -> tuple[AppendSurface, Form]:
    """`verify_best`, once per process for a template, its control tokens and options."""
    if not isinstance(renderer, JinjaRenderer):
        return verify_best(renderer, encoder, options=options)
    parts = (renderer.template, renderer.variables, sorted(encoder.control), dict(options))
    key = blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()
    if key not in _SURFACES:
        _SURFACES[key] = verify_best(renderer, encoder, options=options)
    return _SURFACES[key]


_SURFACES: dict[bytes, tuple[AppendSurface, Form]] = {}


def check_suffix(suffix: str, appended: Sequence[Message], opening: str) -> None:
    """The laws `conserve` and `opens` for messages as they are: contents in order, then the generation prompt.

    Raises SuffixError. Templates may trim a content's outer white space or print it as JSON.
    """
    start = 0
    for message in appended:
        text = text_of(message["content"]).strip()
        if (end := _end_of(text, suffix, start)) is None:
            raise SuffixError(f"conserve: the template does not print this {message['role']} message as it is")
        start = end
    if appended and appended[-1]["role"] in ("user", "system") and not suffix.endswith(opening):
        raise SuffixError("opens: no generation prompt follows the appended messages")


def _end_of(text: str, suffix: str, start: int) -> int | None:
    """Where the first print of `text`, as it is or as a JSON string, ends in `suffix` after `start`."""
    if (place := suffix.find(text, start)) >= 0:
        return place + len(text)
    forms = (json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
    return next((place + len(form) for form in forms if (place := suffix.find(form, start)) >= 0), None)


def _key(options: JsonMapping) -> str:
    return json.dumps(options, sort_keys=True, default=str) if options else ""


def _opens_reasoning(text: str) -> bool:
    return text.rstrip().endswith("<think>")
