"""What `verify template` looks at: a bare template file or a model folder, read into a `Tito`.

Invariant: nothing is started; a template without a tokenizer gets a stand-in that knows the control tokens the template
prints, found in whichever way proves more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from miles_lite.errors import UserError
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.encode import Encoder
from miles_lite.tito.encoders import load_encoder
from miles_lite.tito.fake_tokenizer import VARIABLES, stand_in_tokenizer
from miles_lite.tito.families import Family, family_named, family_of_type
from miles_lite.tito.load import load_model_text, no_template, read_template
from miles_lite.tito.parse import parser_for
from miles_lite.tito.parser_proof import choose_parser
from miles_lite.tito.render import JinjaRenderer, Renderer
from miles_lite.tito.short_context import ShortContexts
from miles_lite.tito.tito import NO_OPTIONS, cached_surface


@dataclass(frozen=True, slots=True)
class Subject:
    """`template` is the text, "" for a Python encoder; `tokens`: real ones are at hand, and not a stand-in's."""

    tito: Tito
    template: str
    name: str
    tokens: bool

    @property
    def level(self) -> str:
        return (
            "text and tokens" if self.tokens else "text (a stand-in for the tokenizer: give --tokenizer DIR for tokens)"
        )

    @property
    def framed(self) -> bool:
        """Whether what frames messages is known: by real tokens, or because the stand-in's show in a plain chat."""
        said = [("user", "hi"), ("assistant", "hello"), ("user", "go on")]
        try:
            ids = self.tito.first([{"role": role, "content": content} for role, content in said]).ids.tolist()
        except RenderError:
            return True
        return self.tokens or not set(ids).isdisjoint(self.tito.encoder.control.values())


def load_subject(
    *,
    template: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    family: str = "auto",
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Subject:
    """Raises UserError for input that cannot be read, RenderError when not even a plain chat can be printed."""
    if (template is None) == (model is None):
        raise UserError("give one of --template FILE.jinja and --model DIR")
    if tokenizer is not None and template is None:
        raise UserError("--tokenizer goes with --template; --model brings its own")
    row = family_named(family)
    folder = model or tokenizer
    text = load_model_text(folder) if folder is not None else None
    source = read_template(template, flag="--template") if template is not None else text.template if text else None
    row = row or (family_of_type(text.model_type) if text and source is None else None)
    renderer = _renderer(source, text.variables if text else VARIABLES, row, where=template or str(folder))
    if text is None and source is None:
        raise UserError("a Python encoder needs a tokenizer: give --model DIR")
    kwargs = {**(row.kwargs if row else {}), **options}
    stops = text.stop_ids if text else frozenset[int]()
    try:
        encoder = Encoder(text.tokenizer if text else stand_in_tokenizer(source or ""))
    except ValueError as error:
        raise UserError(f"the tokenizer in {folder or template} cannot be used: {error}") from error
    best = _tito(renderer, encoder, kwargs, source, stops)
    if text is None and _refused(best):
        other = _tito(renderer, Encoder(stand_in_tokenizer(source or "", widely=True)), kwargs, source, stops)
        best = min(best, other, key=_refused)
    proof = choose_parser(best, source or "", row)
    best = replace(best, parser=proof.parser, flaw=proof.flaw)
    return Subject(best, source or "", template or str(folder), text is not None)


def _tito(
    renderer: Renderer, encoder: Encoder, kwargs: Mapping[str, Any], source: str | None, stops: frozenset[int]
) -> Tito:
    surface, form = cached_surface(renderer, encoder, kwargs)
    return Tito(encoder, renderer, form, surface, parser_for(source or ""), stops, ShortContexts(renderer))


def _refused(tito: Tito) -> int:
    return sum(verdict.law is not None for verdict in tito.surface.roles.values())


def _renderer(source: str | None, variables: Mapping[str, Any], row: Family | None, *, where: str) -> Renderer:
    if row is not None and row.encoder is not None and (source is None or ":" in row.name):
        return load_encoder(row.encoder)
    if source is None:
        raise no_template(where)
    try:
        return JinjaRenderer(source, variables=variables)
    except RenderError as error:
        raise UserError(f"{where}: {error}") from error


def read_options(text: str | None) -> dict[str, Any]:
    """The object of --chat-template-kwargs. Raises UserError."""
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"--chat-template-kwargs: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise UserError("--chat-template-kwargs takes a JSON object, such as '{\"enable_thinking\": false}'")
    return options
