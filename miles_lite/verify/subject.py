"""What `verify template` looks at: a bare template file or a model folder, read into a `Tito`.

Invariant: nothing is started; a template without a tokenizer gets a stand-in that knows the control tokens the template
prints, found in whichever way proves more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.tito import RenderError, Tito
from miles_lite.tito.encode import Encoder
from miles_lite.tito.fake_tokenizer import VARIABLES, stand_in_tokenizer
from miles_lite.tito.families import Family, family_named, family_of_type
from miles_lite.tito.from_folder import renderer_of
from miles_lite.tito.load import ModelText, load_model_text, read_template
from miles_lite.tito.parser_proof import with_parser
from miles_lite.tito.render import Renderer, unless_refused
from miles_lite.tito.tito import NO_OPTIONS


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
        messages = [{"role": role, "content": content} for role, content in said]
        printed = unless_refused(lambda: self.tito.first(messages))
        ids = () if printed is None else printed.ids.tolist()
        return self.tokens or printed is None or not set(ids).isdisjoint(self.tito.encoder.control.values())


def load_subject(
    *,
    template: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    family: str = "auto",
    options: JsonMapping = NO_OPTIONS,
) -> Subject:
    """Raises UserError for input that cannot be read, RenderError when not even a plain chat can be printed."""
    _check_given(template=template, tokenizer=tokenizer, model=model)
    folder, where = model or tokenizer, template or str(model)
    text = None if folder is None else load_model_text(folder)
    source = text.template if template is None and text else read_template(where, flag="--template")
    row = family_named(family) or (family_of_type(text.model_type) if text and source is None else None)
    renderer = _renderer(source, text.variables if text else VARIABLES, row, where)
    source = source or ""
    kwargs = options if row is None else {**row.kwargs, **options}
    tito = _imagined(renderer, source, kwargs) if text is None else _tokenized(text, renderer, source, kwargs, where)
    return Subject(with_parser(tito, source, row), source, where, text is not None)


def _check_given(*, template: str | None, tokenizer: str | None, model: str | None) -> None:
    if (template is None) == (model is None):
        raise UserError("give one of --template FILE.jinja and --model DIR")
    if tokenizer is not None and template is None:
        raise UserError("--tokenizer goes with --template; --model brings its own")


def _renderer(source: str | None, variables: Mapping[str, str], row: Family | None, where: str) -> Renderer:
    with user_error(where, RenderError):
        return renderer_of(source, variables, row, where=where)


def _tokenized(text: ModelText, renderer: Renderer, source: str, options: JsonMapping, where: str) -> Tito:
    with user_error(f"the tokenizer in {where} cannot be used", ValueError):
        encoder = Encoder(text.tokenizer)
    return Tito.of(encoder, renderer, source, options=options, stop_ids=text.stop_ids)


def _imagined(renderer: Renderer, source: str, options: JsonMapping) -> Tito:
    """With a stand-in tokenizer: of the two ways to make one, the one that proves more."""

    def made(widely: bool) -> Tito:
        encoder = Encoder(stand_in_tokenizer(source, widely=widely))
        return Tito.of(encoder, renderer, source, options=options, stop_ids=frozenset())

    best = made(False)
    return min(best, made(True), key=_refused) if _refused(best) else best


def _refused(tito: Tito) -> int:
    return sum(verdict.law is not None for verdict in tito.surface.roles.values())


def read_options(text: str | None) -> JsonObject:
    """The object of --chat-template-kwargs. Raises UserError."""
    with user_error("--chat-template-kwargs: not JSON", ValueError):
        options = json.loads(text or "{}")
    if not isinstance(options, dict):
        raise UserError("--chat-template-kwargs takes a JSON object, such as '{\"enable_thinking\": false}'")
    return options
