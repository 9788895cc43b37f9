"""Renderers turn chat messages into the text a model was trained on; a model's own chat template is enough.

Invariant: a renderer is a function of its arguments (and, for templates that print it, of today's date).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from miles_lite.process.json_types import Json, JsonMapping
from miles_lite.tito.chat_messages import Message, Tools

T = TypeVar("T")


class RenderError(ValueError):
    """The template refused these messages; the text is the template's own."""


class Renderer(Protocol):
    """Anything that prints a conversation: a chat template, or a model's own Python encoder."""

    def render(self, messages: Sequence[Message], *, tools: Tools | None, open_turn: bool, options: JsonMapping) -> str:
        """The conversation as text, with the generation prompt when `open_turn`. Raises RenderError."""
        ...


def unless_refused(printing: Callable[[], T]) -> T | None:
    """What `printing` returns; None where the template refuses."""
    try:
        return printing()
    except RenderError:
        return None


class JinjaRenderer:
    """A chat template in the sandbox that Hugging Face gives it: same filters, globals, and white space rules.

    `reads` are the variables that it takes from outside.
    """

    def __init__(self, template: str, *, variables: JsonMapping | None = None) -> None:
        """`variables` are what a tokenizer adds, such as bos_token. Raises RenderError when it does not compile."""
        self.template = template
        self.variables = dict(variables or {})
        try:
            self._compiled, self.reads = _compiled(template), names_read(template)
        except jinja2.TemplateError as error:
            raise RenderError(f"the chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Message], *, tools: Tools | None, open_turn: bool, options: JsonMapping) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=open_turn,
                **(self.variables | dict(options)),
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RenderError(str(error) or type(error).__name__) from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks what an assistant wrote; here it only has to be accepted."""

    tags = {"generation"}  # noqa: RUF012  jinja2 reads a class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a short way for what templates read most and what is always safe.

    `message.role` is `message["role"]` where no attribute of a dict has that name; `loop` and namespaces are ours.
    """

    _of_dicts = frozenset(dir(dict))

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in self._of_dicts:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind in (LoopContext, Namespace) and attribute[0] != "_" and hasattr(obj, attribute):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


@functools.lru_cache(maxsize=16)
def syntax(template: str) -> nodes.Template:
    """Its tree, for those who read it and leave it as it is, which a compiler does not. Raises jinja2.TemplateError."""
    return environment().parse(template)


@functools.lru_cache(maxsize=16)
def names_read(template: str) -> frozenset[str]:
    """The variables that it takes from outside. Raises jinja2.TemplateError."""
    return frozenset(meta.find_undeclared_variables(environment().parse(template)))


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return environment().from_string(template)


def environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Json, ensure_ascii: bool = False, indent: Json = None, separators: Json = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
