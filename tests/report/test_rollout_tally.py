"""A tally says of a run's rollouts what its rows say, and keeps no more of them than it shows."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from miles_lite.report.record import LAST_ROLLOUTS, LAST_STEPS, read_record
from miles_lite.report.rollout_tally import MOST_FAILURES
from tests.report.runs import all_rows, fail, write_run


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_rows_say(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)

    def fault(step: int, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if step == 3 or rng.random() < 0.3:
                fail(row, rng.choice(["tool", "engine", "agent"]), rng.choice(["gone", "slow"]))
            elif rng.random() < 0.1:
                row["reward"] = None

    record = read_record(write_run(tmp_path, seed=seed, steps=20, fault=fault))
    rows = all_rows(tmp_path)
    tally = record.tally
    assert (tally.rollouts, tally.failed) == (len(rows), sum(row["where"] is not None for row in rows))
    assert tally.trained_tokens == sum(row["trained_tokens"] for row in rows)
    assert tally.outcomes == Counter(row["outcome"] for row in rows)
    for where, broken in tally.broken.items():
        those = [row for row in rows if row["where"] == where]
        assert broken.texts == Counter(row["why"] for row in those)
        assert [row["rollout"] for row in broken.last] == [row["rollout"] for row in those[-MOST_FAILURES:]]
    counts = [broken.count for _, broken in tally.boundaries]
    assert counts == sorted(counts, reverse=True)
    judged = {
        step: [row["reward"] for row in rows if row["step"] == step and row["reward"] is not None] for step in range(20)
    }
    assert tally.spread.keys() == {step for step, rewards in judged.items() if rewards}
    for step, (mean, deviation) in tally.spread.items():
        assert mean == pytest.approx(fmean(judged[step]))
        assert deviation == pytest.approx(pstdev(judged[step]))


def test_rows_are_those_of_the_last_steps_and_a_short_look_counts_these_alone(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, steps=20)
    rows = all_rows(tmp_path)
    assert read_record(tmp_path).rollouts == rows[-LAST_ROLLOUTS:]
    look = read_record(tmp_path, steps=LAST_STEPS)
    assert look.rollouts == rows[-LAST_ROLLOUTS:]
    assert look.tally.rollouts == sum(row["step"] >= 20 - LAST_STEPS for row in rows)
    assert read_record(tmp_path, steps=0).rollouts == []
