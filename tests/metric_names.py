"""The names that docs/metrics.md gives to metrics: a section per family, the names in the first column of its table.

`{a,b}` stands for each of them, `<x>` for whatever is logged there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
AXES = {"time", "rollout/step", "train/step", "eval/step"}


@cache
def documented() -> frozenset[str]:
    """Every name with its family, braces written out: `rollout/zero_std/count_<label>`."""
    names = set()
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        family = section.partition("\n")[0]
        cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        for name in re.findall(r"`([^`]+)`", " ".join(cells)):
            parts = [part.split(",") for part in re.split(r"[{}]", name)]
            names |= {family + "".join(choice) for choice in product(*parts)}
    return frozenset(names)


def undocumented(logged: Iterable[str]) -> set[str]:
    """What is logged and not on the page."""
    patterns = [_pattern(name) for name in documented()]
    return {name for name in set(logged) - AXES if not any(pattern.fullmatch(name) for pattern in patterns)}


def unlogged(family: str, logged: Iterable[str]) -> set[str]:
    """What the page says of a family (`train/`) and is not logged."""
    names = set(logged)
    told = (name for name in documented() if name.startswith(family))
    return {name for name in told if not any(_pattern(name).fullmatch(each) for each in names)}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"[\w.]+".join(map(re.escape, re.split(r"<\w+>", name))))
