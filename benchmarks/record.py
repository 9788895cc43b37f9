"""What recording costs a run, and how long its page takes.

    python benchmarks/record.py [--json FILE] [--steps 40] [--groups 8] [--members 16] [--step-seconds S]
        [--long-steps 10000]

Steps of rollouts are recorded as a run does it: metrics to a file, events, the table of rollouts, trajectories of
2,000 sampled tokens of which some are kept and get what training made of each token, two looks at eight engines, alarms
after each step. That is compared with a step of the quickstart,
which rolls out, trains and updates weights in 10 s for 128 rollouts; rollouts, engines and the trainer are left out.
Printed:

record_ms           of a step: the median of recording it, everything counted
kept_ms             of that: trajectories and advantages, which a thread writes while the next step runs
record_share        record_ms over a step's seconds                                                   (asked: <= 0.01)
bytes_per_rollout   beside trajectories: the table, metrics and events                                (asked: <= 2,048)
trajectory_mb       of trajectories/
report_seconds      `miles-lite report` of it, from start to end                                      (asked: <= 3)
report_mb           of the page                                                                       (asked: <= 5)
dash_first_view_s   of a run of --long-steps steps of 100 rollouts each: its page in `miles-lite dash`  (asked: <= 2)
dash_pictures_s     its pictures, which a browser asks for after it
dash_again_s        the same page once more
dash_first_mb       the most memory that the dash has taken until then                                (asked: <= 300)
dash_first_find_s   rollouts by reward: the first question reads every table
dash_find_s         the next one
dash_mb             the most memory after all of them
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urljoin

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import parquet

from miles_lite.config.tracking import Logging
from miles_lite.engine.reported_load import Load
from miles_lite.errors import Where
from miles_lite.job.events import Events
from miles_lite.observe.sinks import open_sinks
from miles_lite.report import event_rows, rollout_table
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.report.json_lines import encoded
from miles_lite.report.live import LiveAlarms
from miles_lite.report.record import METRICS
from miles_lite.rollout.failures import note_failures
from miles_lite.rollout.fleet_samples import FleetSamples
from miles_lite.rollout.generate import Step
from miles_lite.rollout.kept import Keeper
from miles_lite.rollout.metrics import rollout_metrics
from miles_lite.rollout.recorded import rows_of
from miles_lite.sample import NOT_SAMPLED, Group, Rollout, Sample, Spans, Status
from miles_lite.traces.token_values import TokenValues

SAMPLED = 2000
BUSY = Load(kv_use=0.5, running=16, queued=0, preempted=0, tokens_per_second=812.5, version=3)
QUICKSTART_STEP, QUICKSTART_ROLLOUTS = 10.0, 128


@dataclass(frozen=True)
class Said:
    """A session's turns, where an agent worker would have left them."""

    turns: bytes

    def fetch(self) -> tuple[bytes, dict[str, object]]:
        return self.turns, {"row": 0, "input": "a task"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--long-steps", type=int, default=10_000, help="of the run that the dash shows; 0: no dash")
    parser.add_argument("--step-seconds", type=float, help="of a step (default: the quickstart's for as many rollouts)")
    given = parser.parse_args()
    rollouts = given.groups * given.members
    seconds = given.step_seconds or QUICKSTART_STEP * rollouts / QUICKSTART_ROLLOUTS
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder) / "run", given.steps, given.groups, given.members)
        found["record_share"] = round(found["record_ms"] / 1000 / seconds, 5)
        found |= page(Path(folder) / "run")
        if given.long_steps:
            long_run(Path(folder) / "long", given.long_steps)
            found |= dash(Path(folder) / "long")
    for name, value in found.items():
        print(f"{name:20s} {value}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def measured(run_dir: Path, steps: int, groups: int, members: int) -> dict[str, float]:
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps({"model": {"hf_checkpoint": "none"}}))
    said, rng = Said(orjson.dumps(turns())), np.random.default_rng(0)
    sinks = open_sinks(Logging(), config={}, run_dir=run_dir)
    live, keeper, whole, kept = LiveAlarms(run_dir), Keeper(run_dir, 2), [], []
    fleet = FleetSamples(run_dir)
    with Events(run_dir) as events:
        events.record(Kind.START, "a benchmark")
        events.write()
        for number in range(steps):
            step = a_step(number, groups, members, rng, said)
            metrics = rollout_metrics(step.groups, step.finished) | {names.STEP_TIME: 10.0, names.OVERHEAD_TIME: 0.1}
            began = time.perf_counter()
            for group in step.finished:
                note_failures(run_dir / "failures.jsonl", number, group.prompt["row"], group.rollouts)
            taken = keeper.take(number, step)
            rollout_table.write(run_dir, number, list(rows_of(number, step)))
            sinks.log(metrics, step=number, step_key=names.ROLLOUT_STEP)
            events.record(Kind.FAILURES, "tool 1", step=number)
            events.record(Kind.WEIGHTS, "all engines serve it", step=number, what=f"v{number}", seconds=0.2)
            live.add(metrics, number)
            sinks.log(live.after(number).metrics, step=number, step_key=names.ROLLOUT_STEP)
            writing = time.perf_counter()
            keeper.write(number, taken)
            keeper.add(number, [values(rollout.index) for rollout, _ in taken])
            trained = [rollout.index for group in step.groups for rollout in group.rollouts if rollout.trainable]
            rollout_table.credit(run_dir, number, {rollout: (-1.0) ** rollout for rollout in trained})
            fleet.step = number
            for _ in range(2):
                fleet.record(dict.fromkeys(range(8), BUSY))
            whole.append(time.perf_counter() - began)
            kept.append(time.perf_counter() - writing)
    sinks.close()
    trajectories = sum(path.stat().st_size for path in run_dir.glob("trajectories/*"))
    everything = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
    return {
        "record_ms": round(1000 * median(whole), 2),
        "kept_ms": round(1000 * median(kept), 2),
        "bytes_per_rollout": round((everything - trajectories) / (steps * groups * members), 1),
        "trajectory_mb": round(trajectories / 1e6, 2),
    }


def page(run_dir: Path) -> dict[str, float]:
    """Of `miles-lite report`, in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "miles_lite", "report", str(run_dir)], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    return {
        "report_seconds": round(took, 2),
        "report_mb": round((run_dir / "report.html").stat().st_size / 1e6, 2),
    }


def long_run(run_dir: Path, steps: int) -> None:
    """A folder as a run of so many steps of 100 rollouts leaves it, with 80 metrics a step; its trajectories left
    out."""
    (run_dir / rollout_table.FOLDER).mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"model": {"hf_checkpoint": "none"}}))
    rng, step = np.random.default_rng(0), a_step(0, 25, 4, np.random.default_rng(0), Said(b""))
    rollout_table.write(run_dir, 0, list(rows_of(0, step)))
    made = rollout_table.table(rollout_table.step_path(run_dir, 0))
    place = made.schema.get_field_index("step")
    logged = sorted(names.READ_BACK - {names.ROLLOUT_STEP, names.TRAIN_STEP, names.EVAL_STEP})
    with (run_dir / METRICS).open("wb") as metrics, (run_dir / event_rows.FILE).open("wb") as events:
        for number in range(steps):
            at = pa.array(np.full(made.num_rows, number, np.int32))
            path = rollout_table.step_path(run_dir, number)
            parquet.write_table(made.set_column(place, made.schema.field(place), at), path, compression="zstd")
            values = dict(zip(logged, rng.random(len(logged)).tolist(), strict=True))
            values |= {f"rollout/other{other}": float(rng.random()) for other in range(80 - len(logged))}
            metrics.write(encoded([{names.ROLLOUT_STEP: number, "time": 1.7e9 + number, **values}]))
            said = {"at": 1.7e9 + number, "step": number, "what": f"v{number}", "seconds": 0.2}
            events.write(encoded([event_rows.row(Kind.WEIGHTS, "all engines serve it", **said)]))  # type: ignore[arg-type]


def dash(run_dir: Path) -> dict[str, float]:
    """Of `miles-lite dash`, in a process of its own, which serves already."""
    command = [sys.executable, "-m", "miles_lite", "dash", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = f"{process.stdout.readline().strip()}runs/{run_dir.name}"
        took, page = fetched(address)
        shown = re.findall(r'<img [^>]*src="([^"]*)"', page)
        found = {"dash_first_view_s": took, "dash_pictures_s": sum(fetched(urljoin(address, src))[0] for src in shown)}
        found["dash_again_s"], _ = fetched(address)
        found["dash_first_mb"] = most_memory(process.pid)
        found["dash_first_find_s"], _ = fetched(f"{address}?least=1")
        found["dash_find_s"], _ = fetched(f"{address}?where=tool")
        found["dash_mb"] = most_memory(process.pid)
        process.send_signal(signal.SIGINT)
    return found


def fetched(address: str) -> tuple[float, str]:
    """Seconds, and what it is."""
    began = time.perf_counter()
    with urllib.request.urlopen(address, timeout=300) as answer:
        said = answer.read().decode()
    return round(time.perf_counter() - began, 2), said


def most_memory(pid: int) -> float:
    """MB."""
    said = Path(f"/proc/{pid}/status").read_text()
    return round(int(said.partition("VmHWM:")[2].split()[0]) / 1000, 1)


def a_step(number: int, groups: int, members: int, rng: np.random.Generator, said: Said) -> Step:
    """Rollouts of which one in 60 failed; the others are rewarded 0 or 1."""
    step = Step()
    for group in range(groups):
        ended = Group(number * groups + group, {"row": group, "label": "a"})
        for member in range(members):
            index = (number * groups + group) * members + member
            one = Rollout(index, ended.index, [SAMPLE.record()], transcript=said, status=Status.COMPLETED)
            one.started_at, one.finished_at, one.reward = 1.7e9, 1.7e9 + rng.random(), float(rng.random() < 0.5)
            one.metadata = {"turns": 3, "tool_calls": 2}
            tools = {"bash": float(rng.random()), "search": float(rng.random())}
            one.spans = Spans(queue=0.1, model=2.0, prefill=0.25, tool=sum(tools.values()), tools=tools, reward=0.1)
            if rng.random() < 1 / 60:
                one.fail(Where.TOOL, "RuntimeError: the sandbox does not answer")
            ended.rollouts.append(one)
        step.groups.append(ended)
    step.finished = list(step.groups)
    return step


def turns() -> dict[str, object]:
    """One turn of SAMPLED tokens."""
    logprobs = [-math.log(1 + at % 7) for at in range(SAMPLED)]
    said = {"messages": [{"role": "user", "content": "a task"}], "reply": {"content": "word " * SAMPLED}}
    ids = {"drop": 0, "prompt_ids": list(range(200)), "output_ids": list(range(SAMPLED)), "output_logprobs": logprobs}
    ended = {"temperature": 1.0, "finish_reason": "stop", "weight_versions": [[0, 0, SAMPLED]]}
    return {"model": {}, "leaves": [0], "turns": [{"turn": 0, "parent": None, **said, **ids, **ended}]}


def values(rollout: int) -> TokenValues:
    """What training made of its tokens."""
    drawn = np.random.default_rng(rollout).random((2, SAMPLED), np.float32)
    ids = np.arange(SAMPLED, dtype=np.int32)
    return TokenValues(rollout=rollout, turn=0, places=ids, ids=ids, logprobs=-drawn[0], advantages=drawn[1])


def _sample() -> Sample:
    mask = np.concatenate([np.zeros(200, np.uint8), np.ones(SAMPLED, np.uint8)])
    return Sample(
        tokens=np.arange(len(mask), dtype=np.int32),
        loss_mask=mask,
        logprobs=-mask.astype(np.float32),
        temperatures=np.ones(len(mask), np.float32),
        weight_versions=np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32),
    )


SAMPLE = _sample()

if __name__ == "__main__":
    main()
