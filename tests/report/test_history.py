"""Reading metrics.jsonl back."""

from __future__ import annotations

from pathlib import Path

from miles_lite.report import metric_names as names
from miles_lite.report.history import Curves, Headlines, read_history, series
from tests.report.runs import write_run


def test_what_is_not_a_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"s": 2, "a": 1}\n\n[1]\n{"s": 1, "a": null}\n{"s": 0, "a": 3}\n{"s": 5')
    rows = read_history(path)
    assert len(rows) == 3
    assert series(rows, "a", step_key="s") == {0: 3.0, 2: 1.0}
    assert series(rows, "a", step_key="other") == {}


def test_a_missing_file_is_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.jsonl") == []


def test_headlines_are_those_of_the_whole_file_while_it_grows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", seed=1, steps=12) / "metrics.jsonl"
    lines, growing = path.read_bytes().splitlines(keepends=True), tmp_path / "growing.jsonl"
    headlines = Headlines(growing)
    assert list(headlines.now().names) == []
    for at in range(0, len(lines), 5):
        with growing.open("ab") as file:
            file.write(b"[1]\nno json\n" + b"".join(lines[at : at + 5])[:-1])
        before = headlines.now()
        with growing.open("ab") as file:
            file.write(b"\n")
        now, whole = headlines.now(), Curves.of_rows(read_history(growing))
        assert {name: now.by_step(name) for name in now.names} == {name: whole.by_step(name) for name in whole.names}
        assert sum(len(before.by_step(name)) for name in before.names) < sum(
            len(now.by_step(name)) for name in now.names
        )
    growing.unlink()
    growing.write_text('{"rollout/step": 0, "rollout/reward_unfiltered": 0.5, "rollout/other": 1}\n')
    assert {name: headlines.now().by_step(name) for name in headlines.now().names} == {names.REWARD: {0: 0.5}}
