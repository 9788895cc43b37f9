"""A model folder as a `Tito`: read, what may be appended proved, and the parser of its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.tito.encode import Encoder
from miles_lite.tito.encoders import load_encoder
from miles_lite.tito.families import Family, family_named, family_of_type
from miles_lite.tito.load import load_model_text, no_template, read_template
from miles_lite.tito.parser_proof import with_parser
from miles_lite.tito.render import JinjaRenderer, Renderer, RenderError
from miles_lite.tito.suffix import SuffixError
from miles_lite.tito.surface import AppendSurface
from miles_lite.tito.tito import NO_OPTIONS, Tito


def tito_of(
    folder: str | Path,
    *,
    append_roles: Sequence[str] = ("tool",),
    family: str = "auto",
    chat_template: str | Path | None = None,
    reasoning_parser: str | None = None,
    tool_call_parser: str | None = None,
    longest: int | None = None,
) -> Tito:
    """Read a model folder and prove `append_roles`. Raises UserError naming the law a declared role breaks.

    `chat_template` is a file that takes the place of the folder's template.
    Text that is far too long for `longest` tokens is not encoded to its end (TooLongError).

    A template that takes no tool messages refuses none of the other roles: `tool` is always declared.
    """
    text = load_model_text(folder)
    if chat_template is not None:
        text = replace(text, template=read_template(chat_template, flag="--chat-template-path"))
        folder = chat_template
    row = family_named(family) or (family_of_type(text.model_type) if text.template is None else None)
    template, options = text.template or "", row.kwargs if row else NO_OPTIONS
    try:
        renderer = renderer_of(text.template, text.variables, row, where=folder)
        encoder = Encoder(text.tokenizer, longest=longest)
        tito = Tito.of(encoder, renderer, template, options=options, stop_ids=text.stop_ids)
    except UserError:
        raise
    except (RenderError, SuffixError, ValueError) as error:
        raise UserError(f"the chat template and tokenizer in {folder} cannot be used: {error}") from error
    check_roles(tito.surface, append_roles, folder)
    return with_parser(tito, template, row, reasoning=reasoning_parser, tool_calls=tool_call_parser)


def check_roles(surface: AppendSurface, roles: Sequence[str], folder: str | Path) -> None:
    """Raises UserError for a declared role, other than tool, that is not in the surface."""
    for role in roles:
        verdict = surface.roles[role]
        if role != "tool" and verdict.law is not None:
            raise UserError(
                f"--tito-allowed-append-roles {role}: the chat template in {folder} breaks the law "
                f"`{verdict.law}` ({verdict.reason}); leave the role out, or use another template"
            )


def renderer_of(
    template: str | None, variables: Mapping[str, str], row: Family | None, *, where: str | Path
) -> Renderer:
    """That of a template, or of the family's Python encoder. Raises UserError: there is neither; RenderError."""
    if row is not None and row.encoder is not None and (template is None or ":" in row.name):
        return load_encoder(row.encoder)
    if template is None:
        raise no_template(where)
    return JinjaRenderer(template, variables=variables)
