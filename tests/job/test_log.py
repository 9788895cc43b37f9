"""Two runs in one folder, one after the other: neither tells what the other did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from miles_lite.config.options import parse
from miles_lite.job import log
from miles_lite.job.attempts import attempts
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.log import RECORD, open_log
from miles_lite.observe.sinks import Sinks
from miles_lite.report import event_rows
from miles_lite.report.page import NO_SUMMARY, render
from miles_lite.report.record import SUMMARY, read_record
from tests.report.runs import write_run


@pytest.mark.parametrize("resumed", [False, True])
def test_what_an_earlier_run_left_is_not_taken_for_this_ones(resumed: bool, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", seed=0, steps=2)
    for name in RECORD:
        if not (run_dir / name).exists():
            (run_dir / name).write_text("{}\n")
    flags = ["--hf-checkpoint", "m", "--prompt-data", "p", "--run-dir", str(run_dir), "--rollout-batch-size", "1"]
    with attempts(parse([*flags, "--num-rollout", "1"])[0]) as tries:
        tries.until_done(lambda given, life: _open(given, life, resumed=resumed))
    record = read_record(run_dir)
    assert NO_SUMMARY in render([record])
    assert len(list(run_dir.glob("summary.before-*.json"))) == 1
    assert len(record.rollouts) == (2 * 32 if resumed else 0)
    for name in RECORD:
        kept = list(run_dir.glob(f"{Path(name).stem}.before-*"))
        assert len(kept) == (not resumed), name
    assert SUMMARY not in {path.name for path in run_dir.iterdir()}


def _open(given: object, life: Lifetime, *, resumed: bool) -> None:
    open_log(given, life, resumed=resumed)  # type: ignore[arg-type]


class Shown:
    """A sink with a page."""

    page: str | None = "https://wandb.example/run"

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None: ...
    def close(self) -> None: ...
    def alert(self, title: str, text: str) -> None: ...
    def step_ended(self, step: int) -> None: ...
    def failed(self) -> None: ...


def test_where_else_a_run_is_shown_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "open_sinks", lambda *_, **__: Sinks([], tellers=[Shown()]))
    flags = ["--hf-checkpoint", "m", "--prompt-data", "p", "--run-dir", str(tmp_path), "--rollout-batch-size", "1"]
    with attempts(parse([*flags, "--num-rollout", "1"])[0]) as tries:
        tries.until_done(lambda given, life: _open(given, life, resumed=False))
    told = [(event["what"], event["said"]) for event in event_rows.read(tmp_path) if event["kind"] == "page"]
    assert told == [("wandb", Shown.page)]
