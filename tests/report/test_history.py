"""Reading metrics.jsonl back."""

from __future__ import annotations

from pathlib import Path

from miles_lite.report.history import read_history, series


def test_what_is_not_a_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"s": 2, "a": 1}\n\n[1]\n{"s": 1, "a": null}\n{"s": 0, "a": 3}\n{"s": 5')
    rows = read_history(path)
    assert len(rows) == 3
    assert series(rows, "a", step_key="s") == {0: 3.0, 2: 1.0}
    assert series(rows, "a", step_key="other") == {}


def test_a_missing_file_is_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.jsonl") == []
