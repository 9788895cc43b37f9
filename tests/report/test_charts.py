"""Pictures: long curves are drawn with fewer points, and look the same."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.report.charts import COLUMNS, curves, gantt, stacked, thinned


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6000), st.randoms(use_true_random=False))
def test_a_long_curve_keeps_its_ends_and_all_that_stands_out(size: int, random: object) -> None:
    points = {step: random.uniform(-1, 1) for step in range(size)}  # type: ignore[attr-defined]
    steps, values = thinned(points)
    kept = dict(zip(steps.tolist(), values.tolist(), strict=True))
    assert len(kept) <= max(4 * COLUMNS, 2 * COLUMNS + 2)
    assert kept.items() <= points.items()
    assert {0, size - 1} <= kept.keys()
    assert (min(kept.values()), max(kept.values())) == (min(points.values()), max(points.values()))
    assert list(kept) == sorted(kept)
    if size <= 4 * COLUMNS:
        assert kept == points


@pytest.mark.parametrize("steps", [1, 40, 90])
def test_whatever_there_is_can_be_drawn(steps: int) -> None:
    row = {"started_at": 5.0, "finished_at": 9.0, "model": 2.0, "tool": None, "reward_time": 9.0}
    points = {step: float(step % 3) for step in range(steps)}
    for drawn in (
        curves({"one": points, "other $\\frac{1}{0$ <b>": {0: 1e-9}}, low=0, high=1),
        stacked({"rollout": points, "train": {}}, list(points)),
        stacked({"rollout": dict.fromkeys(points, 0.0)}, list(points)),
        gantt([row] * steps),
        gantt([{**row, "finished_at": 5.0}]),
    ):
        assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_what_is_never_below_nought_is_drawn_from_nought_on() -> None:
    drawn = curves({"queued": dict.fromkeys(range(5), 0.0)}, low=0.0, high=0.0)
    labels = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "0" in labels
    assert not any((label or "").startswith(("-", "\N{MINUS SIGN}")) for label in labels)
