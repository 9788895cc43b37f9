"""Ctrl-C, twice, in every phase of a run: one word, 130, and nothing is left of it, not in the temp folder either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from miles_lite.engine.server_process import FORK_SERVER
from miles_lite.stack.cluster import DASHBOARD
from tests.e2e.job import assert_nothing_left, ended, marked_as, segments, start, values, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture
def temp() -> Iterator[Path]:
    """A temp folder of this test's own, with a short name: sockets are made in it."""
    folder = Path(tempfile.mkdtemp(prefix="stop-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Job:
    """A small run that trains, evaluates and saves each step."""

    def __init__(self, model: Path, folder: Path, *, mark: str, temp: Path) -> None:
        self.run_dir, self.save, self.log, self.mark, self.temp = (
            folder / "run",
            folder / "save",
            folder / "log",
            mark,
            temp,
        )
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"input": f"say {n}", "label": "a"}) + "\n" for n in range(8)))
        flags = "--rm-type contains --label-key label --rollout-batch-size 4 --n-samples-per-prompt 2 --num-rollout 3 "
        flags += "--actor-num-gpus-per-node 1 --colocate --rollout-num-gpus 1 --rollout-max-response-len 24 "
        flags += "--eval-interval 1 --rollout-max-context-len 256 --save-interval 1 --device cpu"
        paths = ["--hf-checkpoint", model, "--prompt-data", prompts, "--run-dir", self.run_dir, "--save", self.save]
        paths += ["--eval-prompt-data", "held", f"{prompts}@[0:2]"]
        variables = {
            "TMPDIR": str(temp),
            DASHBOARD: "1",  # Ctrl-C must not reach it before the run
            FORK_SERVER: "",  # it has its own
        }
        self.process = start("train", [*flags.split(), *map(str, paths)], mark=mark, log=self.log, **variables)
        self.segments: set[Path] = set()

    def rows(self, name: str) -> int:
        return len(values(self.run_dir, name))

    def reach(self, what: str, condition: Callable[[], object]) -> None:
        wait_for(what, condition, timeout=200, process=self.process, log=self.log)
        self.segments |= segments(self.mark)

    def clean(self) -> None:
        """Nothing is left of it but what Ray keeps for people to read."""
        assert_nothing_left(self.mark)
        assert {path.name for path in self.temp.iterdir()} <= {"ray"}
        assert not {path for path in self.segments if path.exists()}


def slept(seconds: float) -> bool:
    time.sleep(seconds)
    return True


PHASES: dict[str, Callable[[Job], object]] = {
    "ray starts": lambda job: marked_as(job.mark, "gcs_server"),
    "engines start": lambda job: (job.run_dir / "logs" / "engine-0.0.log").exists(),
    "it has hardly begun": lambda job: slept(1.0),
    "it checks what it was given": lambda job: slept(3.0),
    "trainers start": lambda job: marked_as(job.mark, "ray::TrainWorker"),
    "agents run": lambda job: job.rows("perf/step_time"),
    "it trains": lambda job: job.rows("perf/rollout_time") > job.rows("train/loss"),
    "it updates weights": lambda job: (job.run_dir / "weights" / "v1").exists(),
    "it evaluates": lambda job: job.rows("perf/update_weights_time") > job.rows("eval/held"),
    "it saves": lambda job: job.save.exists() and list(job.save.glob("*iter*")),
    "it ends": lambda job: (job.run_dir / "summary.json").exists(),
}
QUICK = ("ray starts",)
SUMMED_UP = ("agents run", "it trains", "it evaluates")


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=() if phase in QUICK else pytest.mark.slow) for phase in PHASES]
)
def test_ctrl_c_twice_ends_a_run_in_every_phase(
    tiny_model: Path, tmp_path: Path, mark: str, temp: Path, phase: str
) -> None:
    job = Job(tiny_model, tmp_path, mark=mark, temp=temp)
    job.reach(phase, lambda: PHASES[phase](job))
    os.killpg(job.process.pid, signal.SIGINT)
    time.sleep(0.3)
    if job.process.poll() is None:
        os.killpg(job.process.pid, signal.SIGINT)
    code, text = ended(job.process, job.log), job.log.read_text()
    assert code == 130, text[-6000:]
    assert text.count("interrupted\n") == 1, text[-6000:]
    assert "Traceback" not in text, text[-6000:]
    assert "Error" not in text, text[-6000:]
    assert job.rows("perf/step_time") <= 3
    if phase in SUMMED_UP:
        summary = json.loads((job.run_dir / "summary.json").read_text())
        ends = (summary[f"prompts_{end}"] for end in ("trained", "filtered", "failed", "quarantined", "unused"))
        assert (summary["ended"], sum(ends)) == ("interrupted", summary["prompts_started"])
    job.clean()


@pytest.mark.slow
def test_a_training_step_comes_to_its_end_and_is_saved(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    rows, run_dir, save, log = (tmp_path / name for name in ("rows.jsonl", "run", "save", "log"))
    row = {"input_ids": [at % 300 for at in range(600)], "loss_mask": [0] + [1] * 599}
    rows.write_text((json.dumps(row) + "\n") * 24)
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(rows), "--run-dir", str(run_dir)]
    flags += ["--loss-type", "sft_loss", "--rollout-batch-size", "24", "--num-rollout", "500", "--save", str(save)]
    process = start("train", [*flags, "--disable-tree-training", "--device", "cpu"], mark=mark, log=log)

    def trained() -> int:
        file = run_dir / "metrics.jsonl"
        return file.read_text().count("train/loss") if file.exists() else 0

    wait_for("a step", trained, timeout=200, process=process, log=log)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    code, text = ended(process, log, within=100), log.read_text()
    assert code == 130, text[-6000:]
    assert "the training step comes to its end first" in text
    assert "Traceback" not in text
    last = trained() - 1
    assert f"interrupted: saving rollout {last} before stopping" in text or f"saving rollout {last + 1}" in text
    saved = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert saved in (last, last + 1), "a step that had come to its end was not saved"
    assert_nothing_left(mark)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["it ends by itself", "its driver is killed", "an engine cannot start"])
def test_nothing_is_left_however_a_run_ends(
    tiny_model: Path, tmp_path: Path, mark: str, temp: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "an engine cannot start":
        broken = tmp_path / "broken"
        shutil.copytree(tiny_model, broken)
        (broken / "model.safetensors").write_bytes(b"no weights")
        tiny_model = broken
    job = Job(tiny_model, tmp_path, mark=mark, temp=temp)
    if how == "its driver is killed":
        job.reach("a step", lambda: job.rows("perf/step_time"))
        assert job.segments
        job.process.kill()
    if how == "it ends by itself":
        job.reach("a step", lambda: job.rows("perf/step_time"))
    try:
        code = ended(job.process, job.log, within=200)
    except subprocess.TimeoutExpired:
        raise AssertionError(job.log.read_text()[-6000:]) from None
    assert (code == 0) is (how == "it ends by itself"), job.log.read_text()[-6000:]
    job.clean()
