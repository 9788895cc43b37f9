"""The flags in the texts, lists and dictionaries that a Python launcher puts its command together of."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

from miles_lite.commands.migrate.field_launcher import FLAG, TRAIN, Launcher, paired, word_of
from miles_lite.errors import user_error

CONDITIONAL = (ast.If, ast.IfExp, ast.For, ast.While, ast.comprehension, ast.ExceptHandler, ast.Match, ast.BoolOp)
OTHER_CALLS = frozenset({"add_argument", "add_option", "Option", "option", "Argument"})
"""What declares the launcher's own flags."""
EXPRESSION = "$x"
Texts = ast.JoinedStr | ast.Constant | ast.List | ast.Tuple | ast.Dict


def python_launcher(text: str) -> Launcher:
    """Read, not run: what an expression gives is `$x`; a flag under a condition is left by hand. Raises UserError."""
    with user_error("no Python", SyntaxError, ValueError):
        tree = ast.parse(text)
    return _Reader(text).read(tree)


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._found = Launcher()

    def read(self, tree: ast.Module) -> Launcher:
        self._visit(tree, "")
        self._found.by_hand.sort()
        return self._found

    def _visit(self, node: ast.AST, why: str) -> None:
        """`why`: the flags in it are left by hand."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a text of documentation
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in OTHER_CALLS:
            why = "a flag of the launcher's own"
        elif isinstance(node, ast.Compare):
            why = "compared with something"
        elif isinstance(node, ast.FormattedValue):
            why = "within an expression"
        if isinstance(node, Texts):
            self._take(node, why)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, Texts) and isinstance(child, ast.JoinedStr | ast.Constant):
                continue  # taken with what it is part of
            branch = isinstance(node, CONDITIONAL) and child is not getattr(node, "test", None)
            self._visit(child, f"under the condition of line {getattr(node, 'lineno', 0)}" if branch else why)

    def _take(self, node: Texts, why: str) -> None:
        words = list(self._words(node))
        train = [at for at, (word, _) in enumerate(words) if TRAIN.search(word)]
        begin = train[0] if train else 0
        if not train and words and not words[0][0].startswith(("-", EXPRESSION)):
            begin = len(words)
        flags = paired([word_of(word, line) for word, line in words[begin:]])
        if why:
            self._found.leave(flags, why)
        else:
            self._found.command += flags
            guessed = [each for each in flags if any(value.said is None for value in each.values)]
            self._found.leave(guessed, f"{EXPRESSION} stands for an expression")
        taken = {each.flag for each in flags}
        for word, line in words:
            for match in FLAG.finditer(word):
                if match[0] not in taken:
                    self._found.by_hand.append((line, f"{match[0]}: {why or 'in a text that is no command line'}"))

    def _words(self, node: Texts) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield from ((word, self._line(node, word)) for word in _split(_literal(node)))
            return
        pairs = (
            zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ((each,) for each in node.elts)
        )
        for part in (part for pair in pairs for part in pair):
            if isinstance(part, ast.JoinedStr | ast.Constant):
                said = _literal(part)
                several = said.strip().startswith("--") and " " in said.strip()
                yield from ((word, self._line(part, word)) for word in (_split(said) if several else [said]))
            elif part is not None and not isinstance(part, ast.Starred):
                yield EXPRESSION, part.lineno

    def _line(self, node: ast.expr, word: str) -> int:
        """The line of a text on which a word stands."""
        flag = re.escape(word.partition("=")[0])
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            if re.search(rf"(?<![\w-]){flag}(?![\w-])", self._lines[line - 1]):
                return line
        return node.lineno


def _literal(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else EXPRESSION for each in node.values)
    return node.value if isinstance(node.value, str) else str(node.value)


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(re.sub(r"\\\r?\n", " ", text), posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError:  # a quotation mark that is not closed: what is left is no command line
        return text.split()
