"""The bug classes: a function with one planted mistake, and the candidate fixes of it.

Invariant: every class has `CANDIDATES` fixes of which the first alone is right, so an agent that edits the right place
with a random candidate is rewarded with probability 1 / CANDIDATES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

CANDIDATES = 4


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One class of bug.

    source     the function; {f} its name, {a} its argument, {k} a constant from 11 to 98; contains `wrong` exactly once
    suspect    the suspicious code as the agent quotes it; contains `wrong`
    wrong      the text to replace
    fixes      CANDIDATES replacements, the right one first; free of characters that `sed s/…/…/` treats specially
    argument   draws one argument for the hidden tests, near the constant
    """

    name: str
    source: str
    suspect: str
    wrong: str
    fixes: tuple[str, ...]
    argument: Callable[[Random, int], object]

    @property
    def right(self) -> str:
        return self.fixes[0]

    def command(self, fix: str) -> str:
        """The shell command that applies a fix to the repository."""
        return f"sed -i 's/{self.wrong}/{fix}/' *.py"


def _numbers(random: Random, constant: int) -> list[int]:
    return [random.randint(constant - 9, constant + 9) for _ in range(random.randint(3, 6))]


def _number(random: Random, constant: int) -> int:
    return random.choice((constant, 10 * constant)) + random.randint(-9, 18)


BUGS: tuple[Bug, ...] = (
    Bug(
        name="operator",
        source="def {f}({a}):\n    total = {k}\n    for x in {a}:\n        total -= x\n    return total\n",
        suspect="total -= x",
        wrong="-=",
        fixes=("+=", "*=", "|=", "%="),
        argument=_numbers,
    ),
    Bug(
        name="initial-value",
        source="def {f}({a}):\n    count = 1\n    for x in {a}:\n        count += x > {k}\n    return count\n",
        suspect="count = 1",
        wrong="= 1",
        fixes=("= 0", "= 2", "= 5", "= -1"),
        argument=_numbers,
    ),
    Bug(
        name="comparison",
        source="def {f}({a}):\n    best = {k}\n    for x in {a}:\n        if x < best: best = x\n    return best\n",
        suspect="x < best",
        wrong="<",
        fixes=(">", "==", "!=", "<="),
        argument=_numbers,
    ),
    Bug(
        name="off-by-one",
        source="def {f}({a}):\n    n = len({a})\n    return {k} + sum({a}[i] for i in range(n - 1))\n",
        suspect="range(n - 1)",
        wrong="n - 1",
        fixes=("n", "n + 1", "n - 2", "n % 2"),
        argument=_numbers,
    ),
    Bug(
        name="min-max",
        source="def {f}(x):\n    return max(x, {k})\n",
        suspect="max(x",
        wrong="max",
        fixes=("min", "pow", "sum", "divmod"),
        argument=_number,
    ),
    Bug(
        name="boolean",
        source="def {f}(x):\n    return x > {k} or x < {k}9\n",
        suspect="or x <",
        wrong=" or ",
        fixes=(" and ", " + ", " - ", " in "),
        argument=_number,
    ),
)
