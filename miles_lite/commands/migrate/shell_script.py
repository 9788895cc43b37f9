"""The flags of a shell launcher, as the shell's grammar has them (tree-sitter-bash).

Translated are the words behind train.py, and the arrays and texts that they lead to; what stands under a condition or
in a loop, is of another command, or is not reached, is left by hand. A launcher without a train.py is of arrays that
others use: all of them are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from miles_lite.commands.migrate.field_launcher import FLAG, TRAIN, Found, Launcher, Word, paired
from miles_lite.commands.migrate.shell_words import Words, text_of, walk
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
    with user_error("shell is read with tree-sitter: pip install tree-sitter tree-sitter-bash", ImportError):
        import tree_sitter
        import tree_sitter_bash
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))
    return _Reader(text.replace("\r\n", "\n"), parser).read()


class _Reader:
    def __init__(self, text: str, parser: Parser) -> None:
        self._bytes = text.encode()
        self._words = Words(self._bytes, parser)
        self._root = parser.parse(self._bytes).root_node
        self._found = Launcher()
        self._taken: set[int] = set()
        self._comments: list[tuple[int, int]] = []
        self._nodes = list(walk(self._root))
        self._holders = [held for node in self._nodes if (held := self._held(node)) is not None]
        self._names = {held.name for held in self._holders}

    def read(self) -> Launcher:
        runs = [(words, why) for node in self._nodes for words, why in self._runs(node)]
        chosen = next((run for run in runs if not run[1]), runs[0] if runs else ((), ""))
        for words, why in runs:
            if words is not chosen[0]:
                self._leave(words, why or "another command of train.py")
            elif why:
                self._found.by_hand.append((self._words.line(words[0].at if words else 0), f"train.py: {why}"))
        reached = self._reached(chosen[0], any_name=not runs)
        for name in reached:
            self._fill(name)
        self._found.command = list(self._in_order(chosen[0], reached))
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
        name, raw = text_of(node.child_by_field_name("name")), text_of(value)
        if "[" in name:  # one of an array
            return None
        itself = re.compile(rf'"?\$(?:{name}\b|\{{{name}(?:\[[@*]\])?\}})"?')
        if value.type == "array":
            words = list(self._words.of(value.named_children))
        elif value.type in ("string", "raw_string") and FLAG.match(LEAD.sub("", raw[1:], count=1)):
            words = list(self._words.inner(value))
        else:
            return None
        more = tuple(word for word in words if not itself.fullmatch(word.source))
        adds = "+=" in text_of(node)[: len(name) + 2] or len(more) < len(words)
        return Holder(name, more, adds, node, _condition(node))

    def _runs(self, node: Node) -> Iterator[tuple[tuple[Word, ...], str]]:
        """The words behind each train.py of a command, of a text that it is given, or of one that it reads."""
        if node.type in ("string", "raw_string", "heredoc_body") and TRAIN.search(text_of(node)):
            words = self._words.inner(node)
        elif node.type == "command":
            words = tuple(self._words.arguments(node))
        else:
            return
        places = [at for at, word in enumerate(words) if TRAIN.search(word.text) and " " not in word.text]
        if places:
            yield words[places[0] + 1 :], _condition(node)

    # ---- what is taken ---------------------------------------------------------------------------------------------

    def _reached(self, words: tuple[Word, ...], *, any_name: bool) -> list[str]:
        """The names of what the words lead to, or with `any_name` of all, in the order of the file."""
        known = list(dict.fromkeys(each.name for each in self._holders))
        reached = {name for name in known if any_name and HOLDER.search(name)}
        more = {name for word in words for name in _used(word)} - reached
        while more:
            reached |= more
            led = [word for held in self._holders if held.name in more for word in held.words]
            more = {name for word in led for name in _used(word)} - reached
        return [name for name in known if name in reached and self._holds_flags(name)]

    def _in_order(self, words: Sequence[Word], names: Sequence[str]) -> Iterator[Found | str]:
        """Flags, and the names of arrays that stand between them: each once, behind those that it leads to itself."""
        left = [name for name in names if self._found.arrays.get(name)]

        def arrays(word: Word) -> Iterator[str]:
            if (name := self._held_in(word)) in left:
                left.remove(name)
                for inner in [inner for held in self._holders if held.name == name for inner in held.words]:
                    yield from arrays(inner)
                yield name

        between: list[Word] = []
        for word in words:
            if self._held_in(word):
                yield from self._flags(between)
                yield from arrays(word)
                between = []
            else:
                between.append(word)
        yield from self._flags(between)
        yield from left

    def _held_in(self, word: Word) -> str:
        """The name of the array, or text, of flags that a word is; "" for any other."""
        expansion = EXPANSION.match(word.source.strip('"'))
        name = (expansion[1] or expansion[2]) if expansion else ""
        return name if name and self._holds_flags(name) else ""

    def _holds_flags(self, name: str) -> bool:
        return any(FLAG.match(word.text) for held in self._holders if held.name == name for word in held.words)

    def _fill(self, name: str) -> None:
        for held in (held for held in self._holders if held.name == name):
            if held.why:
                self._leave(held.words, held.why)
                continue
            flags = self._flags(held.words)
            before = self._found.arrays.setdefault(name, [])
            if before and not held.adds:
                why = f"replaced at line {self._words.line(held.node.start_byte)}"
                self._found.leave(before, why)
                before.clear()
            before.extend(flags)

    def _flags(self, words: Sequence[Word]) -> list[Found]:
        """The flags of words, and by hand what they have besides."""
        kept: list[Word] = []
        for word in words:
            bare = word.source.strip('"')
            if self._held_in(word) or bare in ("$@", "$*", "\\"):
                continue
            if (expansion := EXPANSION.match(bare)) and expansion[3] and expansion[2] not in self._names:
                self._found.by_hand.append((word.line, f"{bare}: is not set in this file"))
                continue
            kept.append(word)
            if word.flag is not None:
                self._taken.add(word.at + word.source.find("--"))
        for word in takewhile(lambda word: word.flag is None, kept):
            why = "stands behind no flag" if word.said is not None else "what it holds is not known"
            self._found.by_hand.append((word.line, f"{word.source}: {why}"))
        return paired(kept)

    def _variables(self) -> Iterator[tuple[int, str]]:
        """The lines and assignments that the values need, those of other assignments too."""
        values = [value for each in self._found.flags() for value in each.values if value.said is None]
        needed = {name for value in values for name in _used(value)}
        given = self._assignments()
        while more := {use for name, text, _ in given if name in needed for use in USED.findall(text)} - needed:
            needed |= more
        self._leave_unset(values, {name for name, _, _ in given})
        for name, text, node in given:
            if name not in needed or name in self._found.arrays:
                continue
            if CALLERS.search(text):
                self._found.by_hand.append((self._words.line(node.start_byte), f"{text}: of who calls it"))
            if why := _condition(node):
                self._found.by_hand.append((self._words.line(node.start_byte), f"{text}: {why}"))
            else:
                yield self._words.line(node.start_byte), text

    def _assignments(self) -> list[tuple[str, str, Node]]:
        """Of the whole file: whose, its text, and where it stands."""
        return [
            (text_of(node.child_by_field_name("name")), text_of(node), node)
            for node in self._nodes
            if node.type == "variable_assignment" and not node.has_error
        ]

    # ---- what is left ----------------------------------------------------------------------------------------------

    def _leave(self, words: Sequence[Word], why: str) -> None:
        """Left by hand, flag by flag with its values."""
        self._found.leave(paired(words), why)
        self._taken |= {word.at + word.source.find("--") for word in words if word.flag is not None}

    def _leave_unset(self, values: Sequence[Word], given: set[str]) -> None:
        """What values need, and this file does not say."""
        for value in values:
            for name in dict.fromkeys(_used(value)):
                if name not in given | GIVEN and name not in DEFAULTED.findall(value.source):
                    self._found.by_hand.append((value.line, f"${name}: is not set in this file"))
            if CALLERS.search(value.source):
                self._found.by_hand.append((value.line, f"{value.source}: of who calls it"))

    def _leave_broken(self) -> None:
        """What the grammar could not read, and recovered from."""
        for node in self._nodes:
            for each in (node, *(child for child in node.children if child.is_missing and not child.is_named)):
                if each.is_error or each.is_missing:
                    said = " ".join(text_of(each).split())[:60] or f"a missing {each.type}"
                    self._found.by_hand.append((self._words.line(each.start_byte), f"{said}: cannot be read as shell"))

    def _leave_rest(self) -> None:
        """Every other word that looks like a flag."""
        for match in FLAG_BYTES.finditer(self._bytes):
            at = match.start()
            if at in self._taken or any(begin <= at < end for begin, end in self._comments):
                continue
            node: Node | None = self._root.descendant_for_byte_range(at, at + 2)
            while node is not None and node.type != "command":
                node = node.parent
            of = text_of(node).split()[0] if node is not None else ""
            why = f"of `{of}`" if of else "in no command of train.py"
            self._found.by_hand.append((self._words.line(at), f"{match[0].decode()}: {why}"))


FLAG_BYTES = re.compile(FLAG.pattern.encode())


def _used(word: Word) -> list[str]:
    return USED.findall(word.source) if word.said is None else []


def _condition(node: Node) -> str:
    """Under what the node is run; "" where it always is."""
    child, parent = node, node.parent
    while parent is not None:
        head = text_of(parent).splitlines()[0][:60] if text_of(parent) else ""
        if parent.type in CONDITIONAL and child is not parent.child_by_field_name("condition"):
            return f"only under `{head}`"
        if parent.type == "list" and child.id != parent.children[0].id:
            operator, left = parent.children[1].type, parent.children[0]
            if operator == "||" or left.type in TESTS or text_of(left).startswith(("[", "test ")):
                return f"only under `{text_of(left)[:60]}`"
        child, parent = parent, parent.parent
    return ""
