"""events.jsonl: what a run notes is on disk at once, and nothing about it stops the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.errors import RunLostError
from miles_lite.job.events import Events
from miles_lite.report import event_rows
from miles_lite.report.event_rows import COLUMNS, KINDS, Kind
from tests.job.test_attempts import STEPS, Trainer, config, run

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
KILLED = """
import os, signal, sys
from pathlib import Path
from miles_lite.job.events import Events
from miles_lite.report.event_rows import Kind
with Events(Path(sys.argv[1])) as events:
    events.write()
    for step in range(500):
        events.record(Kind.WEIGHTS, "all engines serve it", step=step, what=f"v{step}", seconds=0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def told(folder: Path) -> list[tuple[object, object, object]]:
    return [(row["kind"], row["step"], row["said"]) for row in event_rows.read(folder)]


def test_a_killed_run_has_its_last_line(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ}, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    rows = event_rows.read(tmp_path)
    assert [row["step"] for row in rows] == list(range(500))
    assert {frozenset(row) for row in rows} == {frozenset(COLUMNS)}


def test_what_comes_before_the_file_is_known_is_kept_and_words_are_bounded(tmp_path: Path) -> None:
    with Events(tmp_path) as events:
        events.record(Kind.START, "here")
        assert not list(tmp_path.iterdir())
        events.write()
        events.record(Kind.SERVERS, "x" * 10_000)
    first, second, last = event_rows.read(tmp_path)
    assert (first["kind"], last["kind"], last["said"]) == ("start", "end", "well")
    assert len(second["said"]) == event_rows.MOST_SAID


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), Events(tmp_path):
        raise ValueError("bad input")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt(), "interrupted"), (RunLostError("it has died"), "RunLostError: it has died")],
)
def test_how_a_run_ends_is_its_last_event(error: BaseException, said: str, tmp_path: Path) -> None:
    def begins_and_fails() -> None:
        with Events(tmp_path) as events:
            events.record(Kind.START, "here")
            raise error

    with pytest.raises(type(error)):
        begins_and_fails()
    assert told(tmp_path)[-1] == ("end", None, said)


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Events(tmp_path / "gone") as events:
        events.write()
        for _ in range(3):
            events.record(Kind.SERVERS, "engine 0 is replaced")
    assert caplog.text.count("the run goes on without") == 1


def test_attempts_are_in_it(tiny_model: Path, tmp_path: Path) -> None:
    given = config(tiny_model, tmp_path, "--save", str(tmp_path / "save"))
    run(given, Trainer((0, 3, True, RunLostError("train rank 1 has died")), (4, 8, True, None)))
    begins, *rest = told(given.run_dir)
    assert begins[0] == "start"
    assert rest[0] == ("stands", 0, f"step 1 of {STEPS} is the next")
    assert rest[1] == ("restart", 4, "train rank 1 has died; Step 5 of 9 is lost")
    assert [kind for kind, _, _ in rest[2:]] == ["start", "stands", "end"]


def test_the_page_has_every_column_and_kind() -> None:
    for name, (kind, says) in COLUMNS.items():
        assert f"| `{name}` | {kind} | {says} |" in PAGE
    for each, says in KINDS.items():
        assert f"| `{each}` | {says} |" in PAGE
    assert set(KINDS) == set(Kind)
