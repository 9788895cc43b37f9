"""A placed request as an engine is asked for it: the ids of its whole context, and how to sample after them.

Invariant: what an engine is sent depends on the run's parameters, the request and its place alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.process.json_types import JsonMapping
from miles_lite.session.dialects.request import ChatRequest
from miles_lite.session.engine.grammar import grammar
from miles_lite.session.engine.prompt_json import Prompts
from miles_lite.session.engine.sampling import Sampling, resolve
from miles_lite.session.history.placing import Placed
from miles_lite.tito import ReplyParser


@dataclass(frozen=True, slots=True)
class Prompt(Placed):
    """A request placed in the tree, how it is sampled, and `text`, the ids of its whole context as JSON."""

    sampling: Sampling
    text: bytes


@dataclass(frozen=True, slots=True)
class Prompter:
    """Makes a server's prompts; `texts` remembers what of them was written before."""

    texts: Prompts
    parser: ReplyParser
    client_chooses: bool
    context_length: int

    def prompt(self, session_id: str, run: JsonMapping, request: ChatRequest, placed: Placed) -> Prompt:
        """`run` are the session's own sampling parameters. Raises ApiError 400."""
        place, suffix = placed.place, placed.suffix
        sampling = resolve(
            run,
            request.body,
            client_chooses=self.client_chooses,
            prompt_tokens=placed.tokens,
            context_length=self.context_length,
        )
        constraint = grammar(
            request.constraint,
            tools=request.callable_tools,
            parser=self.parser,
            in_reasoning=suffix.opens_reasoning,
        )
        sampling.params.update(constraint)
        text = self.texts.write(session_id, place.turn, suffix.ids, drop=suffix.drop)
        return Prompt(place, suffix, sampling, text)
