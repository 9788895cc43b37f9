"""Documentation: every link leads to a file and a heading of the repository, and every flag that is named exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from miles_lite.config.field_flags import ANSWERS
from miles_lite.config.flags import every_option
from tests.config.commands import COMMANDS

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/*.md")), *REPO.glob("examples/*/*.md")]
OF_OTHERS = {"--no-deps", "--nodes"}
"""Flags of pip and sbatch."""


def name(page: Path) -> str:
    return str(page.relative_to(REPO))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def flags() -> frozenset[str]:
    """Of every command, launcher, script, example and benchmark."""
    options = [each for command in COMMANDS for each in every_option(command)]
    own = {flag for each in options for flag in (each.flag, each.flag.replace("--", "--no-", 1))}
    scripts = [*REPO.glob("launchers/*.sh"), *REPO.glob("scripts/*.sh"), REPO / "pyproject.toml"]
    told = re.findall(r"--[a-z][\w-]+", "".join(path.read_text(encoding="utf-8") for path in scripts))
    sources = [path for folder in ("miles_lite", "examples", "benchmarks") for path in (REPO / folder).rglob("*.py")]
    added = re.findall(r'add_argument\(\s*"(--[\w-]+)', "".join(path.read_text(encoding="utf-8") for path in sources))
    others = {name for each in options for name in each.option.aka} | {f"--{x}" for x in ANSWERS}
    return frozenset({*own, *told, *added, *others, "--help"} | OF_OTHERS)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", page.read_text(encoding="utf-8")))
    assert {flag for flag in named - flags() if not flag.startswith("--sglang")} == set()
