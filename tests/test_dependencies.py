"""pyproject.toml names what the package imports, no less and no more."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
OPTIONAL = [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
MENDED = {"torchvision"}
"""Imported only to be mended where it is installed: transformers imports it then, and it may not fit the torch."""
RUN = {"mini-swe-agent", "sglang", "smg", "tensorboard"}
"""Extras that are started or used through another package, not imported by name."""


NAMES = {"gem": "gem-llm", "reasoning_gym": "reasoning-gym"}
"""Of extras that `make setup-dev` does not install, what they are imported as."""


def _imported() -> Iterator[tuple[Path, str]]:
    """(file, top-level name) of every import of somebody else's package."""
    for file in (ROOT / "miles_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in ("miles_lite", *MENDED):
                    yield file.relative_to(ROOT), top


def _distributions() -> dict[str, set[str]]:
    """Names that can be imported, and the distributions that bring them."""
    brought = importlib.metadata.packages_distributions()
    known = {name: {package} for name, package in NAMES.items()}
    return known | {name: {each.lower().replace("_", "-") for each in each_of} for name, each_of in brought.items()}


def test_what_is_imported_is_declared() -> None:
    declared = {requirement.name.lower() for requirement in REQUIRED + OPTIONAL}
    brought = _distributions()
    missing = {f"{file}: {name}" for file, name in _imported() if not brought.get(name, {name.lower()}) & declared}
    assert missing == set()


def test_what_is_declared_is_imported() -> None:
    brought = _distributions()
    used = {each for _, name in _imported() for each in brought.get(name, {name.lower()})}
    unused = {requirement.name.lower() for requirement in REQUIRED + OPTIONAL} - used - RUN
    assert unused == set()


def test_private_api_is_bounded_and_what_is_installed_is_within_the_bounds() -> None:
    for requirement in REQUIRED:
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement} is not {installed}"
    aiohttp = next(requirement for requirement in REQUIRED if requirement.name == "aiohttp")
    assert any(each.operator == "<" for each in aiohttp.specifier), "router/upstream.py uses what aiohttp may change"
