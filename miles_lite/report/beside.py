"""Several runs beside one another: the options in which they differ, what became of each, their curves in one picture.

Invariant: reads records alone; a run that lacks something has a dash there, and no line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from miles_lite.report import metric_names as names
from miles_lite.report.pictures import Picture, curve_picture
from miles_lite.report.record import Record

CURVES: Mapping[str, tuple[str, str]] = {
    "Reward": (names.REWARD, "mean reward of a step's rollouts"),
    "Groups without gradient": (names.ZERO_STD, "share of groups whose rewards are all equal"),
    "Failed": (names.FAILED, "share of rollouts that failed"),
    "Length": (names.RESPONSE_LEN, "trained tokens a rollout"),
    "Trainer against engines": (names.LOGPROB_GAP, "mean difference of logprobs, nats a token"),
    "Gradient": (names.GRAD_NORM, "norm before clipping"),
    "Entropy": (names.ENTROPY, "nats a token"),
    "Step time": (names.STEP_TIME, "seconds"),
    "Tokens a second": (names.TOKENS_PER_SECOND, "trained tokens that were rolled out in a second"),
}
"""A picture's title, its metric, and what that says."""


@dataclass(frozen=True)
class SideBySide:
    """Rows have a name, and a cell for each run."""

    differences: Sequence[tuple[str, Sequence[str]]]
    facts: Sequence[tuple[str, Sequence[str]]]
    pictures: Sequence[Picture]


def side_by_side(
    records: Sequence[Record], named: Sequence[str], facts: Sequence[Mapping[str, str]]
) -> SideBySide | None:
    """Of runs with these names, and what is said of each; None of one alone."""
    if len(records) < 2:
        return None
    every = dict.fromkeys(name for each in facts for name in each)
    rows = [(name, [each.get(name, "-") for each in facts]) for name in every]
    return SideBySide(differences(records), rows, list(_pictures(records, named)))


def differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Options that are not the same in all runs, and what they are in each."""
    every = sorted({name for record in records for name in record.options})
    values = {name: [str(record.options.get(name, "-")) for record in records] for name in every}
    return [(name, said) for name, said in values.items() if len(set(said)) > 1]


def _pictures(records: Sequence[Record], named: Sequence[str]) -> list[Picture]:
    made = list[Picture]()
    for title, (metric, says) in CURVES.items():
        lines = {name: record.by_step(metric) for name, record in zip(named, records, strict=True)}
        made += curve_picture(title, says, lines, low=0.0, high=0.0)
    held_out = dict.fromkeys(name for record in records for name in record.held_out)
    for dataset in held_out:
        lines = {name: record.by_step(names.heldout(dataset)) for name, record in zip(named, records, strict=True)}
        made += curve_picture(f"Held-out {dataset}", "mean reward", lines, low=0.0, high=1.0)
    return made
