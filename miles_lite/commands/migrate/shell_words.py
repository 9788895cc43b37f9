"""The words of a shell's grammar (tree-sitter-bash).

Invariant: what no blank parts is one word, however many nodes the grammar has for it; a redirection is none.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from miles_lite.commands.migrate.field_launcher import Word

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

REDIRECTIONS = frozenset({"file_redirect", "herestring_redirect", "heredoc_redirect"})
EXPANDED = frozenset(
    {"simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion"}
    | {"ansi_c_string", "translated_string"}
)
GLOB = re.compile(r"(?<!\\)[*?\[{]|^~")
"""In a word without quotes: what a shell finds files by, makes several words of, or takes for a home."""
ESCAPE = re.compile(rb'\\(?=["$`\\])')
"""In double quotes, a backslash that is not of the text."""


class Words:
    """Those of one script: `text`, its bytes."""

    def __init__(self, text: bytes, parser: Parser) -> None:
        self._text, self._parser = text, parser
        self._begins = [0, *(at + 1 for at, byte in enumerate(text) if byte == 10)]

    def line(self, at: int) -> int:
        return bisect_right(self._begins, at)

    def of(self, nodes: Sequence[Node], places: Sequence[int] | None = None) -> Iterator[Word]:
        """Those of neighbours; `places`: where each byte of theirs is in the script, if not where they say."""
        for several in _touching(nodes):
            source = "".join(map(text_of, several))
            at = several[0].start_byte if places is None else places[several[0].start_byte]
            if not any(map(_expands, several)):
                said: str | None = _unquoted(source)
            elif self._is_one(source):
                said = None
            else:
                source, said = shlex.quote(source), source
            yield Word(source, said, self.line(at), at)

    def arguments(self, command: Node) -> Iterator[Word]:
        """The words of a command, and those that it has behind a redirection."""
        nodes, parent = list(command.named_children), command.parent
        if parent is not None and parent.type == "redirected_statement":
            for redirection in parent.named_children:
                if redirection.type == "file_redirect":
                    targets = [each for each in redirection.named_children if each.type != "file_descriptor"]
                    nodes += [each for several in list(_touching(targets))[1:] for each in several]
        return self.of(nodes)

    def inner(self, node: Node) -> tuple[Word, ...]:
        """The words of a text, as of a command line."""
        quotes = 0 if node.type == "heredoc_body" else 1
        begin, end, lead = node.start_byte + quotes, node.end_byte - quotes, b": "
        text = self._text[begin:end].replace(b"\\\n", b"  ").replace(b"\n", b" ")
        left_out = {each.start() for each in ESCAPE.finditer(text)} if node.type == "string" else set[int]()
        kept = [at for at in range(len(text)) if at not in left_out]
        places = [begin] * len(lead) + [begin + at for at in kept]
        tree = self._parser.parse(lead + bytes(text[at] for at in kept))
        commands = [each.named_children for each in walk(tree.root_node) if each.type == "command"]
        behind = [[node for node in nodes if node.start_byte >= len(lead)] for nodes in commands]
        return tuple(word for nodes in behind for word in self.of(nodes, places))

    def _is_one(self, source: str) -> bool:
        tree = self._parser.parse(f": {source}".encode()).root_node
        if tree.has_error or len(tree.children) != 1:
            return False
        return len(list(_touching(tree.children[0].named_children))) == 2


def walk(node: Node) -> Iterator[Node]:
    """Depth first, in the order of the text, however deep."""
    waiting = [node]
    while waiting:
        yield (first := waiting.pop())
        waiting += reversed(first.named_children)


def text_of(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode()


def _touching(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Neighbours without a blank between them; comments and redirections are none."""
    several: list[Node] = []
    for node in nodes:
        if node.type == "comment" or node.type in REDIRECTIONS:
            continue
        if several and several[-1].end_byte != node.start_byte:
            yield several
            several = []
        several.append(node)
    if several:
        yield several


def _expands(node: Node) -> bool:
    """Whether a shell makes something else of it than it says."""
    return any(
        each.type in EXPANDED or (each.type == "word" and GLOB.search(text_of(each)) is not None) for each in walk(node)
    )


def _unquoted(source: str) -> str:
    try:
        return "".join(shlex.split(source)[:1])
    except ValueError:  # a quotation mark that is not closed
        return source
