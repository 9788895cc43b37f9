"""Make the tasks: small repositories, each with one planted bug, as JSONL rows for `--prompt-data`.

    python make_tasks.py --out data --train 96 --heldout 48 --seed 0

Invariant: modules, function names, argument names and constants of the two splits are disjoint, and a row exists only
if its hidden tests pass with the right fix and fail with the bug and with every wrong fix.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bugs import BUGS, Bug


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What one split may use."""

    modules: tuple[str, ...]
    verbs: tuple[str, ...]
    arguments: tuple[str, ...]
    constants: range


SPLITS: dict[str, Vocabulary] = {
    "train": Vocabulary(
        modules=(
            "billing",
            "cart",
            "depot",
            "fleet",
            "garden",
            "hotel",
            "kitchen",
            "ledger",
            "meter",
            "parcel",
            "radio",
        ),
        verbs=("find", "check", "rate", "score", "tally", "weigh"),
        arguments=("fees", "items", "loads", "marks", "parts", "sizes"),
        constants=range(11, 99, 2),
    ),
    "heldout": Vocabulary(
        modules=("airport", "bakery", "clinic", "library", "museum", "theatre"),
        verbs=("assess", "gauge", "measure", "review"),
        arguments=("beds", "books", "seats", "tickets"),
        constants=range(12, 99, 2),
    ),
}


def make_tasks(split: str, *, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows `{"input": str, "metadata": {...}}` of a split, the bug classes in turn, all different.

    metadata: `bug` (class), `files` (path -> text), `hidden_tests` (Python source that raises when the bug is there).
    """
    random = Random(f"{split}-{seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < count:
        row = _task(BUGS[len(rows) % len(BUGS)], words=SPLITS[split], random=random)
        key = json.dumps(row["metadata"]["files"])
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return rows


def _task(bug: Bug, *, words: Vocabulary, random: Random) -> dict[str, Any]:
    module, verb, argument = (random.choice(names) for names in (words.modules, words.verbs, words.arguments))
    constant = random.choice(words.constants)
    function = f"{verb}_{argument}"
    source = bug.source.format(f=function, a=argument, k=constant)
    return {
        "input": f"{function} in {module}.py is wrong.",
        "metadata": {
            "bug": bug.name,
            "files": {f"{module}.py": source},
            "hidden_tests": _hidden_tests(bug, module, function, source, constant, random),
        },
    }


def _hidden_tests(bug: Bug, module: str, function: str, source: str, constant: int, random: Random) -> str:
    """Asserts that only the right fix passes; arguments are drawn until that holds."""
    right = _function(source.replace(bug.wrong, bug.right), function)
    others = [_function(source, function), *(_function(text, function) for text in _wrong_sources(bug, source))]
    while True:
        cases = [bug.argument(random, constant) for _ in range(4)]
        expected = [right(case) for case in cases]
        if all(_answers(other, cases) != expected for other in others):
            asserts = [f"assert {function}({case}) == {value}" for case, value in zip(cases, expected, strict=True)]
            return "\n".join([f"from {module} import {function}", *asserts, ""])


def _wrong_sources(bug: Bug, source: str) -> Iterator[str]:
    for fix in bug.fixes[1:]:
        yield source.replace(bug.wrong, fix)


def _function(source: str, name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # our own template, never a model's text
    return namespace[name]


def _answers(function: Any, cases: list[object]) -> list[object] | None:
    try:
        return [function(case) for case in cases]
    except (TypeError, IndexError, ValueError, ArithmeticError):
        return None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--train", type=int, default=96, help="tasks to train on")
    parser.add_argument("--heldout", type=int, default=48, help="tasks to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, count in (("train", args.train), ("heldout", args.heldout)):
        path = args.out / f"{split}.jsonl"
        write_jsonl(path, make_tasks(split, count=count, seed=args.seed))
        print(f"{path}: {count} tasks, {len(BUGS)} bug classes")


if __name__ == "__main__":
    main()
