"""Keeps what messages say from becoming a control token, alone or together with the text of the template around it.

A mark is put into every place of a string where a control token could form once the template has printed it:

    whole      a control token stands in the string
    its end    the string ends in the beginning of one, which the template's own text may complete
    its start  the string begins with what completes a control token that some text of the template ends in
    cuts       the string holds what the template cuts out of strings, so that what is around it may come together

Invariant: in the print of guarded values, whatever reads as a control token comes from the template; without the marks
it is the print of the values themselves. Names that templates look fields up by are never marked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Literal, TypeVar

from jinja2 import nodes

from miles_lite.process.json_types import Json
from miles_lite.tito.render import JinjaRenderer, Renderer, RenderError, syntax

T = TypeVar("T")

_MARKS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Private-use characters, one of which is put into look-alikes: the first that the text holds in no form."""

_FIELDS = frozenset(
    "role content reasoning_content tool_calls tool_call_id id index type function name arguments text description "
    "parameters return returns properties required items enum default strict additionalProperties anyOf oneOf allOf "
    "title format nullable const minimum maximum minItems maxItems pattern $ref $defs definitions".split()
)
"""Keys of messages, tools and JSON schemas, which templates look up."""

_ROLES = ("system", "user", "assistant", "tool")

Keys = Literal["fields", "names", "data"]
"""What the keys of an object are: fields, where those of _FIELDS are looked up; names of objects with fields; data."""

_BELOW: Mapping[str, Keys] = MappingProxyType(
    {"arguments": "data", "properties": "names", "$defs": "names", "definitions": "names"}
)

_CUTTING = frozenset("split rsplit replace partition rpartition removeprefix removesuffix".split())


@dataclass(frozen=True, slots=True)
class Edges:
    """What a template puts beside strings (`texts`: all its own text) and what it cuts out of them.

    "" in `cuts`: it may cut anything.
    """

    texts: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()

    @classmethod
    def of(cls, renderer: Renderer) -> Edges:
        """A Python encoder's are not known: it is taken to cut anything, and to open no token that a string closes."""
        if not isinstance(renderer, JinjaRenderer):
            return cls((), ("",))
        tree = syntax(renderer.template)
        methods = [each for each in tree.find_all(nodes.Call) if getattr(each.node, "attr", "") in _CUTTING]
        filters = [each for each in tree.find_all(nodes.Filter) if each.name in ("replace", "truncate")]
        slices = [each for each in tree.find_all(nodes.Getitem) if isinstance(each.arg, nodes.Slice)]
        cuts = [_constant(each.args[0]) if each.args else " " for each in methods]
        cuts += [_constant(each.args[0]) if each.args else "" for each in filters]
        cuts += ["" for each in slices if not _of_messages(each.node)]
        return cls(tuple(literals(tree)), tuple(dict.fromkeys(cuts)))


def literals(tree: nodes.Template) -> list[str]:
    """Every text and string constant of a template."""
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return texts + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]


class Guard:
    """Marks values for one template and one set of control tokens."""

    def __init__(self, control: Iterable[str], edges: Edges) -> None:
        tokens = sorted((token for token in control if len(token) > 1), key=len, reverse=True)
        whole = "|".join(map(re.escape, tokens)) or r"(?!)"
        self._whole, self._overlapping = re.compile(whole), re.compile(f"(?={whole})")
        self._begins = frozenset(token[:size] for token in tokens for size in range(1, len(token)))
        self._first = frozenset(token[0] for token in tokens)
        self._longest = max(map(len, tokens), default=1) - 1
        self._rests = frozenset(rest for token in tokens for rest in _rests(token, edges.texts))
        self._next = frozenset(rest[0] for rest in self._rests)
        self._cuts = tuple(cut for cut in edges.cuts if not self._whole.search(cut))

    def __call__(self, value: T) -> tuple[T, str]:
        """`value` (strings, lists and dicts of them) with a mark wherever one is needed, and the mark; "" when none.

        Raises RenderError when the text holds all 137,000 characters that could mark one.
        """
        if not self._any(value, "fields"):
            return value, ""
        flat = json.dumps(value, ensure_ascii=False, default=str)
        for mark in map(chr, chain(*_MARKS)):
            if mark not in flat and json.dumps(mark)[1:-1] not in flat:
                return self._marked(value, mark, "fields"), mark
        raise RenderError("the messages hold every private-use character, so none is left to mark look-alikes")

    def _any(self, value: Json, keys: Keys) -> bool:
        if isinstance(value, str):
            return self._needs(value)
        if isinstance(value, dict):
            for key, item in value.items():
                if _is_data(key, keys) and self._needs(key):
                    return True
                if not _is_role(key, item, keys) and self._any(item, _below(key, keys)):
                    return True
            return False
        return isinstance(value, list | tuple) and any(self._any(item, keys) for item in value)

    def _marked(self, value: Json, mark: str, keys: Keys) -> Json:
        if isinstance(value, str):
            return self._mark(value, mark)
        if isinstance(value, dict):
            return {
                self._mark(key, mark) if _is_data(key, keys) else key: item
                if _is_role(key, item, keys)
                else self._marked(item, mark, _below(key, keys))
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._marked(item, mark, keys) for item in value]
        return value

    def _mark(self, text: str, mark: str) -> str:
        if not self._needs(text):
            return text
        bounds = [0, *sorted(self._places(text)), len(text)]
        return mark.join(text[left:right] for left, right in pairwise(bounds))

    def _needs(self, text: str) -> bool:
        """Whether the string needs a mark anywhere."""
        if (text[:1] in self._next or text[:1].isspace()) and self._completes(text):
            return True
        for letter in self._first:  # a generator would take longer than the search
            if letter in text:
                break
        else:
            return bool(self._next) and any(cut in text for cut in self._cuts)
        return (
            self._whole.search(text) is not None
            or next(self._unfinished(text), None) is not None
            or any(cut in text for cut in self._cuts)
        )

    def _places(self, text: str) -> set[int]:
        """After the first character of what may become a control token, before what may go on with one."""
        places = {match.start() + 1 for match in self._overlapping.finditer(text)}
        places |= {start + 1 for start in self._unfinished(text)}
        if self._completes(text):
            places.add(len(text) - len(text.lstrip()))
        if found := [cut for cut in self._cuts if cut in text]:
            places |= self._between(text, list(filter(None, found)))
        return places

    def _between(self, text: str, cuts: list[str]) -> set[int]:
        """At every letter of a control token, but for those of what the template cuts."""
        spans = [match.span() for cut in cuts for match in re.finditer(re.escape(cut), text)]
        kept = {place for span in spans for place in range(*span)}
        free = [(place, letter) for place, letter in enumerate(text) if place not in kept]
        begun = {place + 1 for place, letter in free if letter in self._first}
        return begun | {place for place, letter in free if letter in self._next}

    def _completes(self, text: str) -> bool:
        """Whether the string's start goes on with a control token that the template may have begun."""
        bare = text.strip()
        return bool(bare) and any(bare.startswith(rest) or rest.startswith(bare) for rest in self._rests)

    def _unfinished(self, text: str) -> Iterator[int]:
        """Where a control token begins that the string does not finish, white space at its end aside."""
        for end in {len(text), len(text.rstrip())}:
            for start in range(max(0, end - self._longest), end):
                if text[start] in self._first and text[start:end] in self._begins:
                    yield start


def _rests(token: str, texts: Iterable[str]) -> set[str]:
    """What is left of a control token after any beginning of it that the template's own text can write."""
    pieces = [text for text in texts if text]
    begun = {size for size in range(1, len(token)) if any(text.endswith(token[:size]) for text in pieces)}
    grown = set(begun)
    while grown:
        ends = {size + len(text) for size in grown for text in pieces if token.startswith(text, size)}
        grown = {size for size in ends if size < len(token)} - begun
        begun |= grown
    return {token[size:] for size in begun}


def _is_data(key: str, keys: Keys) -> bool:
    return isinstance(key, str) and (keys != "fields" or key not in _FIELDS)


def _is_role(key: str, item: Json, keys: Keys) -> bool:
    return keys == "fields" and key == "role" and item in _ROLES


def _below(key: str, keys: Keys) -> Keys:
    """What the keys of an object's item are."""
    return "data" if keys == "data" else "fields" if keys == "names" else _BELOW.get(key, "fields")


def _constant(node: nodes.Node) -> str:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else ""


def _of_messages(node: nodes.Node) -> bool:
    """Whether this names the messages, as in `messages[1:]`."""
    return isinstance(node, nodes.Name) and node.name.endswith("messages")
