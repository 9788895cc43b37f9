"""The flags of a shell launcher, as the shell's grammar has them (tree-sitter-bash).

Translated are the words behind train.py, and the arrays and texts that they lead to; what stands under a condition or
in a loop, is of another command, or is not reached, is left by hand.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from miles_lite.commands.migrate.field_launcher import (
    FLAG,
    NAME,
    OTHERS,
    TRAIN,
    Found,
    Launcher,
    Literal,
    Source,
    paired,
)
from miles_lite.errors import user_error

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

CONDITIONAL = frozenset({"if_statement", "case_item", "for_statement", "c_style_for_statement", "while_statement"})
TESTS = frozenset({"test_command", "negated_command"})
EXPANSION = re.compile(r"\$(?:(\w+)|\{(\w+)(\[[@*]\])?\})$")
"""A word that is one expansion."""
LEAD = re.compile(r"^(?:[\s\\]|\$\{?\w+(?:\[[@*]\])?\}?(?=\s))*")
"""What flags in a text may come behind: space, and other texts of flags."""
USED = re.compile(r"\$\{?[#!]?([A-Za-z_]\w*)")
DEFAULTED = re.compile(r"\$\{([A-Za-z_]\w*):?[-=+?]")
"""One that need not be set."""
CALLERS = re.compile(r"\$\{?[#!]?[1-9@*]")
"""An argument of who calls it."""
GIVEN = frozenset("HOME PWD OLDPWD USER PATH HOSTNAME RANDOM SECONDS UID EUID TMPDIR LANG BASH_SOURCE FUNCNAME".split())
"""Variables that a shell has."""
HOLDER = re.compile(r"ARGS|OPTS|OPTIONS|FLAGS")
"""In the names of arrays and texts that are taken though no train.py is in sight."""


@dataclass(frozen=True)
class Word:
    """`said`: without its quotes, where no expansion is in it; `at`: its place in bytes."""

    said: str
    raw: str
    at: int


@dataclass(frozen=True)
class Holder:
    """An array, or a text, of words."""

    name: str
    words: tuple[Word, ...]
    adds: bool
    node: Node
    why: str
    """It is not always run: under which condition."""


def shell_launcher(text: str) -> Launcher:
    """Raises UserError where the grammar is not installed."""
    with user_error("LAUNCHER: shell is read with tree-sitter: pip install tree-sitter tree-sitter-bash", ImportError):
        import tree_sitter
        import tree_sitter_bash
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))
    return _Reader(text.replace("\r\n", "\n"), parser).read()


class _Reader:
    def __init__(self, text: str, parser: Parser) -> None:
        self._bytes, self._parser = text.encode(), parser
        self._root = parser.parse(self._bytes).root_node
        self._begins = [0, *(at + 1 for at, byte in enumerate(self._bytes) if byte == 10)]
        self._found = Launcher()
        self._taken: set[int] = set()
        self._comments: list[tuple[int, int]] = []
        self._nodes = list(_walk(self._root))
        self._holders = [held for node in self._nodes if (held := self._held(node)) is not None]

    def read(self) -> Launcher:
        runs = [(words, why) for node in self._nodes for words, why in self._runs(node)]
        chosen = next((run for run in runs if not run[1]), runs[0] if runs else ((), ""))
        for words, why in runs:
            if words is not chosen[0]:
                self._leave(words, why or "another command of train.py")
            elif why:
                self._found.by_hand.append((self._line(words[0].at if words else 0), f"train.py: {why}"))
        for name in self._reached(chosen[0], any_name=not runs):
            self._fill(name)
        if flags := self._flags(chosen[0]):
            self._found.arrays.setdefault(OTHERS, []).extend(flags)
        self._found.arrays = {name: flags for name, flags in self._found.arrays.items() if flags}
        self._found.variables = list(self._variables())
        self._leave_rest()
        self._leave_broken()
        self._found.by_hand.sort()
        return self._found

    # ---- what is there ---------------------------------------------------------------------------------------------

    def _held(self, node: Node) -> Holder | None:
        """The array of an assignment, or the flags of its text."""
        if node.type == "comment":
            self._comments.append((node.start_byte, node.end_byte))
        if node.type != "variable_assignment" or (value := node.child_by_field_name("value")) is None:
            return None
        name, raw = _text(node.child_by_field_name("name")), _text(value)
        if "[" in name:  # one of an array
            return None
        itself = re.compile(rf'"?\$(?:{name}\b|\{{{name}(?:\[[@*]\])?\}})"?')
        if value.type == "array":
            words = [self._word(each) for each in value.named_children if each.type != "comment"]
        elif value.type in ("string", "raw_string") and FLAG.match(LEAD.sub("", raw[1:], count=1)):
            words = list(self._inner(value))
        else:
            return None
        more = tuple(word for word in words if not itself.fullmatch(word.raw))
        adds = "+=" in _text(node)[: len(name) + 2] or len(more) < len(words)
        return Holder(name, more, adds, node, _condition(node))

    def _runs(self, node: Node) -> Iterator[tuple[tuple[Word, ...], str]]:
        """The words behind each train.py of a command, of a text that it is given, or of one that it reads."""
        if node.type in ("string", "raw_string", "heredoc_body") and TRAIN.search(_text(node)):
            words = self._inner(node)
        elif node.type == "command":
            words = tuple(self._word(each) for each in node.named_children if each.type != "comment")
        else:
            return
        places = [at for at, word in enumerate(words) if TRAIN.search(word.said) and " " not in word.said]
        if places:
            yield words[places[0] + 1 :], _condition(node)

    def _inner(self, node: Node) -> tuple[Word, ...]:
        """The words of a text, as of a command line."""
        quotes = 0 if node.type == "heredoc_body" else 1
        begin, end = node.start_byte + quotes, node.end_byte - quotes
        lead = b": "
        tree = self._parser.parse(lead + self._bytes[begin:end].replace(b"\n", b" ").replace(b"\\ ", b"  "))
        commands = [each for each in _walk(tree.root_node) if each.type == "command"]
        inner = [each for command in commands for each in command.named_children]
        return tuple(self._word(each, base=begin - len(lead)) for each in inner if each.type != "comment")

    def _word(self, node: Node, *, base: int = 0) -> Word:
        raw = _text(node)
        running = node.type == "process_substitution"
        dynamic = running or (node.type != "raw_string" and not {"$", "`"}.isdisjoint(raw))
        said: str
        if not dynamic:
            said = Literal(_unquoted(raw))
        elif node.type == "string" and not set('"\\`') & set(raw[1:-1]):
            said = raw[1:-1]
        else:
            said = raw if not set("\"'\\`(") & set(raw) else Source(raw) if self._whole(raw) else Literal(raw)
        return Word(said, raw, base + node.start_byte)

    def _whole(self, raw: str) -> bool:
        """Whether it is one word."""
        tree = self._parser.parse(f": {raw}".encode()).root_node
        return not tree.has_error and len(tree.children) == 1 and len(tree.children[0].named_children) == 2

    # ---- what is taken ---------------------------------------------------------------------------------------------

    def _reached(self, words: tuple[Word, ...], *, any_name: bool) -> list[str]:
        """The names of what the words lead to, in the order of the file."""
        known = list(dict.fromkeys(each.name for each in self._holders))
        used = {name for node in self._nodes if node.type == "command" for name in USED.findall(_text(node))}
        reached = {name for word in words for name in USED.findall(word.raw)}
        reached |= {name for name in known if (name not in used or any_name) and HOLDER.search(name)}
        while (
            more := {
                name
                for held in self._holders
                if held.name in reached
                for word in held.words
                for name in USED.findall(word.raw)
            }
            - reached
        ):
            reached |= more
        return [name for name in known if name in reached and self._holds_flags(name)]

    def _holds_flags(self, name: str) -> bool:
        return any(FLAG.match(word.said) for held in self._holders if held.name == name for word in held.words)

    def _fill(self, name: str) -> None:
        for held in (held for held in self._holders if held.name == name):
            if held.why:
                self._leave(held.words, held.why)
                continue
            flags = self._flags(held.words)
            before = self._found.arrays.setdefault(name, [])
            if before and not held.adds:
                why = f"replaced at line {self._line(held.node.start_byte)}"
                self._found.by_hand += [(each.line, f"{' '.join([each.flag, *each.values])}: {why}") for each in before]
                before.clear()
            before.extend(flags)

    def _flags(self, words: tuple[Word, ...]) -> list[Found]:
        """The flags of words, and by hand what they have besides."""
        kept: list[tuple[str, int]] = []
        for word in words:
            expansion = EXPANSION.match(word.raw.strip('"'))
            name = (expansion[1] or expansion[2]) if expansion else ""
            if name and self._holds_flags(name):
                continue
            if name and "[" in word.raw and not any(held.name == name for held in self._holders):
                self._found.by_hand.append((self._line(word.at), f"{word.raw}: is not set in this file"))
                continue
            if word.said not in ("$@", "$*", "\\"):
                kept.append((word.said, self._line(word.at)))
            if NAME.match(word.said.partition("=")[0]):
                self._taken.add(word.at + word.raw.find("--"))
        lead = takewhile(lambda word: not NAME.match(word[0].partition("=")[0]), kept)
        self._found.by_hand += [(line, f"{said}: what it holds is not known") for said, line in lead if "$" in said]
        return paired(kept)

    def _variables(self) -> Iterator[str]:
        """The assignments that the values need, those of other assignments too."""
        found = [each for flags in self._found.arrays.values() for each in flags]
        values_at = [(v, each.line) for each in found for v in each.values if not isinstance(v, Literal)]
        needed = {name for value, _ in values_at for name in USED.findall(value)}
        given = [
            (_text(node.child_by_field_name("name")), _text(node), node)
            for node in self._nodes
            if node.type == "variable_assignment" and not node.has_error
        ]
        while more := {use for name, text, _ in given if name in needed for use in USED.findall(text)} - needed:
            needed |= more
        self._leave_unset(values_at, {name for name, _, _ in given})
        for name, text, node in given:
            if name not in needed or name in self._found.arrays:
                continue
            if CALLERS.search(text):
                self._found.by_hand.append((self._line(node.start_byte), f"{text}: of who calls it"))
            if why := _condition(node):
                self._found.by_hand.append((self._line(node.start_byte), f"{text}: {why}"))
            else:
                yield text

    # ---- what is left ----------------------------------------------------------------------------------------------

    def _leave(self, words: tuple[Word, ...], why: str) -> None:
        """Left by hand, flag by flag with its values."""
        for each in paired([(word.said, self._line(word.at)) for word in words]):
            self._found.by_hand.append((each.line, f"{' '.join([each.flag, *each.values])}: {why}"))
        self._taken |= {word.at + word.raw.find("--") for word in words if NAME.match(word.said.partition("=")[0])}

    def _leave_unset(self, values: list[tuple[str, int]], given: set[str]) -> None:
        """What values need, and this file does not say."""
        for value, line in values:
            for name in dict.fromkeys(USED.findall(value)):
                if name not in given | GIVEN and name not in DEFAULTED.findall(value):
                    self._found.by_hand.append((line, f"${name}: is not set in this file"))
            if CALLERS.search(value):
                self._found.by_hand.append((line, f"{value}: of who calls it"))

    def _leave_broken(self) -> None:
        """What the grammar could not read, and recovered from."""
        for node in self._nodes:
            for each in (node, *(child for child in node.children if child.is_missing and not child.is_named)):
                if each.is_error or each.is_missing:
                    said = " ".join(_text(each).split())[:60] or f"a missing {each.type}"
                    self._found.by_hand.append((self._line(each.start_byte), f"{said}: cannot be read as shell"))

    def _leave_rest(self) -> None:
        """Every other word that looks like a flag."""
        for match in FLAG_BYTES.finditer(self._bytes):
            at = match.start()
            if at in self._taken or any(begin <= at < end for begin, end in self._comments):
                continue
            node: Node | None = self._root.descendant_for_byte_range(at, at + 2)
            while node is not None and node.type != "command":
                node = node.parent
            of = _text(node).split()[0] if node is not None else ""
            why = f"of `{of}`" if of else "in no command of train.py"
            self._found.by_hand.append((self._line(at), f"{match[0].decode()}: {why}"))

    def _line(self, at: int) -> int:
        return bisect_right(self._begins, at)


FLAG_BYTES = re.compile(FLAG.pattern.encode())


def _walk(node: Node) -> Iterator[Node]:
    """Depth first, in the order of the text, however deep."""
    waiting = [node]
    while waiting:
        yield (first := waiting.pop())
        waiting += reversed(first.named_children)


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode()


def _unquoted(raw: str) -> str:
    try:
        return "".join(shlex.split(raw)[:1])
    except ValueError:  # a quotation mark that is not closed
        return raw


def _condition(node: Node) -> str:
    """Under what the node is run; "" where it always is."""
    child, parent = node, node.parent
    while parent is not None:
        head = _text(parent).splitlines()[0][:60] if _text(parent) else ""
        if parent.type in CONDITIONAL and child is not parent.child_by_field_name("condition"):
            return f"only under `{head}`"
        if parent.type == "list" and child.id != parent.children[0].id:
            operator, left = parent.children[1].type, parent.children[0]
            if operator == "||" or left.type in TESTS or _text(left).startswith(("[", "test ")):
                return f"only under `{_text(left)[:60]}`"
        child, parent = parent, parent.parent
    return ""
