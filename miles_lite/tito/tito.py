"""`Tito`: messages in, token ids out, for any model folder; what a model produced is never tokenized again.

Invariant: every id that `first` and `append` return comes from the template or from messages, and the ids of the turns
before are never touched but for `Suffix.drop`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miles_lite.errors import UserError
from miles_lite.tito.encode import Encoder
from miles_lite.tito.load import load_model_text
from miles_lite.tito.messages import Message, Tools, normalise
from miles_lite.tito.parse import Reply, ReplyParser, ReplyStream, parser_for
from miles_lite.tito.render import JinjaRenderer, Renderer, RenderError
from miles_lite.tito.suffix import Cut, SuffixError, cut
from miles_lite.tito.verify import AppendSurface, short_context, verify

NO_OPTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Suffix:
    """What a turn adds to the context: int32 `ids`, after the last `drop` sampled tokens of the turn before are cut.

    `opens_reasoning`: the generation prompt has begun the reasoning, so the reply starts inside it.
    """

    ids: np.ndarray
    drop: int = 0
    opens_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Tito:
    """One model's text: how to print it, encode it, append to it and read its replies."""

    encoder: Encoder
    renderer: Renderer
    surface: AppendSurface
    parser: ReplyParser
    stop_ids: frozenset[int]

    @classmethod
    def load(
        cls, folder: str | Path, *, append_roles: Sequence[str] = ("tool",), parser: ReplyParser | None = None
    ) -> Tito:
        """Read a model folder and prove `append_roles`. Raises UserError naming the law a declared role breaks.

        A template that takes no tool messages refuses none of the other roles: `tool` is always declared.
        """
        text = load_model_text(folder)
        try:
            encoder = Encoder(text.tokenizer)
            renderer = JinjaRenderer(text.template, variables=text.variables)
            surface = verify(renderer, encoder)
        except (RenderError, SuffixError, ValueError) as error:
            raise UserError(f"the chat template and tokenizer in {folder} cannot be used: {error}") from error
        for role in append_roles:
            verdict = surface.roles[role]
            if role != "tool" and verdict.law is not None:
                raise UserError(
                    f"--tito-allowed-append-roles {role}: the chat template in {folder} breaks the law "
                    f"`{verdict.law}` ({verdict.reason}); leave the role out, or use another template"
                )
        return cls(encoder, renderer, surface, parser or parser_for(text.template), text.stop_ids)

    def first(
        self, messages: Sequence[Message], *, tools: Tools | None = None, options: Mapping[str, Any] = NO_OPTIONS
    ) -> Suffix:
        """The ids of a whole conversation, generation prompt included. Raises RenderError."""
        (guarded, tool_list), mark = self.encoder.guard(([normalise(message) for message in messages], tools))
        text = self.renderer.render(guarded, tools=tool_list, open_turn=True, options=options)
        return Suffix(self.encoder.encode(text, mark=mark), 0, _opens_reasoning(text))

    def append(
        self,
        history: Sequence[Message],
        appended: Sequence[Message],
        *,
        stop: int | None,
        tools: Tools | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> Suffix:
        """The ids that follow a sampled assistant turn, the last of `history`, when `appended` comes after it.

        `stop` is the stop token the turn ended by sampling, None when it was cut. Every appended role must be proved.
        Raises RenderError, SuffixError.
        """
        new = [normalise(message) for message in appended]
        context = self.surface.context([message["role"] for message in new])
        last = normalise(history[-1])
        before = short_context(last) if context == "short" else [*map(normalise, history[:-1]), last]
        (guarded_before, guarded, tool_list), mark = self.encoder.guard((before, new, tools))
        found: Cut = cut(
            self.renderer,
            guarded_before,
            guarded,
            tools=tool_list,
            options=options,
            control=self.encoder.control_pattern,
        )
        ended_by = None if stop is None else self.encoder.text_of(stop)
        drop, text = self.surface.join.glue(ended_by, found.suffix, self.encoder.control_pattern)
        return Suffix(self.encoder.encode(text, mark=mark), drop, _opens_reasoning(text))

    def parse(
        self, ids: Sequence[int] | np.ndarray, *, tools: Tools | None = None, in_reasoning: bool = False
    ) -> Reply:
        """What sampled ids say; leave the stop token out. Never raises."""
        return self.parser.parse(self.encoder.decode(ids), tools=tools, in_reasoning=in_reasoning)

    def stream(self, *, tools: Tools | None = None, in_reasoning: bool = False) -> ReplyStream:
        return ReplyStream(self.parser, tools, in_reasoning)


def _opens_reasoning(text: str) -> bool:
    return text.rstrip().endswith("<think>")
