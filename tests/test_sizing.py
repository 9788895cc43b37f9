"""docs/sizing.md computes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "sizing.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## Four sizes")[1].split("## Layouts")[0].splitlines()
    if line.startswith("| ") and "Model" not in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_follows_from_the_models_shape(row: list[str]) -> None:
    billions, (hidden, layers, kv_heads) = float(row[1]), map(int, row[2:5])
    states, activations, engine, cache = row[5:]
    assert states == ", ".join(str(round(16 * billions / ranks)) for ranks in (1, 8, 16))
    assert float(activations) == round(34 * hidden * layers / 1e6, 1)
    assert int(engine) == round(2 * billions)
    assert int(cache) == round(4 * layers * kv_heads * 128 / 1e3)


def test_every_size_has_a_layout() -> None:
    layouts = PAGE.split("## Layouts")[1]
    assert ROWS
    assert all(f"| {row[0].split()[0]} |" in layouts for row in ROWS)
