"""Documentation: every link leads to a file and a heading of the repository, every flag and metric that is named
exists, and the pictures of the house are of this one."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from miles_lite.config.field_flags import ANSWERS
from miles_lite.config.flags import every_option
from tests.config.commands import COMMANDS
from tests.metric_names import documented

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


def test_the_house_has_the_rooms_of_its_picture() -> None:
    house = (REPO / "docs" / "index.md").read_text(encoding="utf-8").split("## The house")[1].split("\n## ")[0]
    rooms = {folder.parent.name for folder in REPO.glob("miles_lite/*/__init__.py")}
    picture, told = house.split("```")[1:3]
    drawn = set(re.findall(r"(?<![\w/])([a-z_]+)/(?![\w])", picture))
    assert drawn - rooms == set()
    assert {room for room in rooms - drawn if f"`{room}/`" not in told} == set()


def test_the_order_of_rooms_is_that_of_the_contract() -> None:
    contract = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (told,) = re.findall(r"```\n(cli > .*?)```", (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert " ".join(told.split()).split(" > ") == contract[0]["layers"]


def test_what_one_looks_for_is_logged() -> None:
    """Each part of a name that docs/debug.md shows is one of some metric, and each healthy range is of one shown."""
    text = (REPO / "docs" / "debug.md").read_text(encoding="utf-8")
    shown = [(row, re.findall(r"`[^`]*show RUN/metrics\.jsonl ([^`]+)`", row)) for row in text.splitlines()]
    parts = [(row, " ".join(found).split()) for row, found in shown if found]
    assert parts
    for row, names in parts:
        assert [part for part in names if not any(part in metric for metric in documented())] == []
        healthy = re.findall(r"`([a-z_/]+)`", row.split("|")[3])
        asked = {metric for metric in documented() if any(part in metric for part in names)}
        unseen = [name for name in healthy if name not in names and not any(name in metric for metric in asked)]
        assert [name for name in unseen if any(name in metric for metric in documented())] == [], row
