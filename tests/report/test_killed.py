"""A run that is killed with -9, whatever it was writing, reads to the last step that it told of."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miles_lite.cli import main
from miles_lite.config.tracking import Logging
from miles_lite.job.events import Events
from miles_lite.observe.sinks import open_sinks
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.report.live import LiveAlarms
from miles_lite.report.page import NO_SUMMARY, render
from miles_lite.report.record import read_record
from miles_lite.rollout.recorded import Recorder
from miles_lite.traces import atraj
from tests.rollout.test_kept import a_step, credited, told


async def records(run_dir: Path) -> None:
    """What a run writes of its steps, until it is killed; each is said when it has been written."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    sinks, live = open_sinks(Logging(), config={}, run_dir=run_dir), LiveAlarms(run_dir)
    recorder = Recorder(run_dir, keep=2)
    with Events(run_dir) as events:
        events.write()
        for step in range(100_000):
            await recorder.record(step, a_step([[1.0, 0.0, 0.5, 0.5], [0.0, 1.0]]))
            recorder.credit(step, {0: 0.5, 1: -0.5}, [told(credited(0), credited(1))])
            events.record(Kind.WEIGHTS, "all engines serve it", step=step, what=f"v{step}", seconds=0.1)
            metrics = {names.REWARD: 0.5, names.STEP_TIME: 1.0}
            sinks.log(metrics, step=step, step_key=names.ROLLOUT_STEP)
            live.add(metrics, step)
            live.after(step)
            print(step, flush=True)


@pytest.mark.parametrize("seed", range(4))
def test_it_reads_to_the_last_step(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, chance = tmp_path / "run", random.Random(seed)
    code = "import asyncio, pathlib, sys; from tests.report.test_killed import records; "
    code += "asyncio.run(records(pathlib.Path(sys.argv[1])))"
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(chance.randint(1, 8)):
        last = int(process.stdout.readline())
    time.sleep(chance.uniform(0, 0.03))
    process.kill()
    rest = process.stdout.read().split()
    process.wait(30)
    last = int(rest[-1]) if rest else last
    record = read_record(run)
    logged, written = max(record.by_step(names.REWARD)), max(row["step"] for row in record.rollouts)
    assert {logged, written} <= {last, last + 1}
    assert [event["step"] for event in record.events][: last + 1] == list(range(last + 1))
    assert record.tally.rollouts == 6 * (1 + written)
    for path in (run / "trajectories").glob("[0-9]*.atraj"):
        atraj.read(path)
    assert NO_SUMMARY in render([record])
    assert main(["status", str(run)]) == 0
    assert f"\nstep {logged + 1}  reward 0.500" in capsys.readouterr().out
