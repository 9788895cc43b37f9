"""The house stays one that a stranger finds his way in: what is counted here may not grow."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "miles_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [file for file in FILES if file.name != "__init__.py"]
EQUAL_ROLES = {
    "actor.py",
    "app.py",
    "client.py",
    "errors.py",
    "gauges.py",
    "prometheus.py",
    "server_main.py",
    "spec.py",
}
"""Basenames that several rooms have for the same part of them."""


NAMES = {
    file: ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for file in FILES
}
KNOWN = set(NAMES.values())
BRANCHES = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert),
    *(ast.comprehension, ast.match_case),
)


def nodes(*kinds: type[ast.AST], of: Sequence[Path] = FILES) -> Iterator[tuple[Path, ast.AST]]:
    for file in of:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield file, node


def branches(node: ast.AST) -> int:
    return len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, BRANCHES)


def imported(file: Path) -> set[str]:
    """Our modules that a file imports, wherever it does."""
    found = set()
    for _, node in nodes(ast.Import, ast.ImportFrom, of=[file]):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{each.name}" for each in node.names}
            found |= inner if inner & KNOWN else {str(node.module)}
    return found & KNOWN


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_few_modules_are_loose() -> None:
    loose = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert loose == {"cli.py", "errors.py", "hooks.py", "model_folder.py", "sample.py"}


def test_a_name_is_given_once_but_to_parts_with_the_same_role() -> None:
    names = Counter(file.name for file in MODULES if file.parent.name != "cpu_profile")
    assert {name for name, count in names.items() if count > 1} <= EQUAL_ROLES


def test_modules_and_functions_are_short() -> None:
    sizes = [lines(file) for file in MODULES]
    assert statistics.median(sizes) <= 100
    assert {file.name for file, size in zip(MODULES, sizes, strict=True) if size > 350} == set()
    for file, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert (node.end_lineno or node.lineno) - node.lineno < 60, f"{file.name}: {node.name}"


def test_functions_branch_little() -> None:
    """A cyclomatic complexity of 15 at most, nested functions and comprehensions included."""
    for file, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert 1 + sum(map(branches, ast.walk(node))) <= 15, f"{file.name}: {node.name}"


def test_no_module_imports_one_that_imports_it() -> None:
    """Imports within functions, and those for types alone, count."""
    TopologicalSorter({module: imported(file) - {module} for file, module in NAMES.items()}).prepare()


def test_tests_import_nothing_private() -> None:
    for file, node in nodes(ast.ImportFrom, of=sorted((PACKAGE.parent / "tests").rglob("*.py"))):
        assert isinstance(node, ast.ImportFrom)
        ours = str(node.module).startswith("miles_lite")
        assert not [each.name for each in node.names if ours and each.name.startswith("_")], file


def test_errors_are_caught_where_something_is_done_about_them() -> None:
    """Six `try` in a thousand lines."""
    caught = sum(1 for _ in nodes(ast.Try))
    assert caught * 1000 <= 6 * sum(map(lines, MODULES))


def test_signatures_say_types() -> None:
    unsaid = 0
    for _, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        arguments = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        told = [node.returns, *(one.annotation for one in arguments if one is not None)]
        unsaid += sum(
            isinstance(part, ast.Name) and part.id == "Any" for one in told if one is not None for part in ast.walk(one)
        )
    assert unsaid <= 200
