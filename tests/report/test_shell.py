"""A run from another shell: `status`, `tail` and `show`, in pipes and with colours."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miles_lite.cli import main
from miles_lite.commands.show import COLOURS
from miles_lite.job.claim import claimed, in_use
from miles_lite.job.events import Events
from miles_lite.process.piped import READER_GONE
from miles_lite.report import json_lines, rollout_table
from miles_lite.report.event_rows import Kind
from miles_lite.report.json_lines import Growing
from miles_lite.report.record import read_record
from miles_lite.report.transcript import PLACES
from tests.report.helpers import a_run, credit, keep
from tests.report.runs import FAULTS, STEPS, write_run

CONTROLS = {chr(code) for code in range(32)} - {"\n", "\t"}


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([*map(str, argv)]) == 0
    out = capsys.readouterr().out
    assert not CONTROLS & set(out), "escapes in a pipe"
    return out


def test_status_says_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", seed=1, fault=FAULTS["failures"], ended=False)
    with contextlib.suppress(RuntimeError), Events(folder) as events:
        events.write()
        events.record(Kind.SERVERS, "engine 0: its process has ended; replacing it")
        with claimed({"--run-dir": folder}):
            running = said(capsys, "status", folder)
        raise RuntimeError("x\x1b[31m")
    assert running.splitlines()[0] == f"{folder}: running"
    assert f"step {STEPS}  reward 0." in running
    assert "alarm: Rollouts fail: 1" in running
    assert "servers: engine 0: its process has ended" in running
    assert said(capsys, "status", folder).splitlines()[0].startswith(f"{folder}: ended: RuntimeError: x␛[31m, 0:0")


def test_a_killed_run_is_called_one_and_a_healthy_one_has_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", seed=1, ended=False)
    json_lines.append(folder / "events.jsonl", [{"time": time.time() - 90, "kind": "weights", "said": "all serve it"}])
    out = said(capsys, "status", folder)
    assert "ended without a word: it was killed, 1:30 ago" in out
    assert "\nno alarm\n" in out


def test_who_has_a_folder_is_known(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with claimed({"--run-dir": tmp_path}):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_tail_follows_until_the_run_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seed=1, steps=3, ended=False)
    command = [sys.executable, "-m", "miles_lite", "tail", str(folder), "--lines", "1"]
    with claimed({"--run-dir": folder}), Events(folder) as events:
        events.write()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        row = {"rollout/step": 3, "time": time.time(), "rollout/reward_unfiltered": 0.75, "perf/step_time": 9.5}
        json_lines.append(folder / "metrics.jsonl", [row])
        second = process.stdout.readline()
        events.record(Kind.ALARM, "Rollouts fail: all of them", step=3, what="failures")
        third = process.stdout.readline()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert first.startswith("step 3  reward 0.")
    assert second == "step 4  reward 0.750  step 9.5s\n"
    assert third.endswith("alarm failures step 4: Rollouts fail: all of them\n")
    assert rest.endswith("end: well\n")


def test_a_run_that_is_removed_ends_tail_with_a_word(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", seed=1, steps=3, ended=False)
    command = [sys.executable, "-m", "miles_lite", "tail", str(folder), "--lines", "1"]
    with claimed({"--run-dir": folder}):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("step 3")
        shutil.rmtree(folder)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is there no longer" in complaint
    assert "Traceback" not in complaint


def test_events_of_anybody_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", seed=1, steps=3)
    rows = '{"time":"x","kind":5}\n{"time":1e300,"kind":null,"said":[1]}\n[1]\n\xff\n{"kind":"alarm","what":null}\n'
    (folder / "events.jsonl").write_text(rows)
    assert "[1]" in said(capsys, "status", folder)
    said(capsys, "tail", folder, "--no-follow")
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").mkdir()
    assert main(["status", str(folder)]) == 2
    assert "events.jsonl cannot be read" in capsys.readouterr().err


def test_tail_of_a_run_that_has_ended_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", seed=1, steps=20)
    lines = said(capsys, "tail", folder, "--lines", 4).splitlines()
    assert [line.split()[:2] for line in lines] == [["step", str(step)] for step in (17, 18, 19, 20)]


def test_a_file_that_grows_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    growing = Growing(path)
    assert growing.rows() == []
    path.write_text('{"a":1}\n{"a"')
    assert growing.rows() == [{"a": 1}]
    with path.open("a") as file:
        file.write(":2}\n")
    assert growing.rows() == [{"a": 2}]
    path.write_text('{"b":1}\n')
    assert growing.rows() == [{"b": 1}]


def test_show_prints_a_rollout_and_every_token(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_record(a_run(tmp_path, tiny_model)).rollouts
    keep(tmp_path, rows[-1], [40, 41, 42])
    out = said(capsys, "show", tmp_path, rows[-1]["rollout"])
    assert "step             3\n" in out
    assert "\nassistant  turn 0, 3 tokens, mean logprob " in out
    assert "<script>alert('x')</script> ␀␛[31m" in out
    assert "was not kept (--keep-trajectories)" in said(capsys, "show", tmp_path, rows[-2]["rollout"])


@pytest.mark.parametrize(
    ("by", "colour"), [("probability", 33), ("mask", 2), ("advantage", 32), ("version", 35), ("gap", 33)]
)
def test_tokens_are_coloured_by_what_is_asked_for(
    by: str, colour: int, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    row = read_record(a_run(tmp_path, tiny_model)).rollouts[-1]
    keep(tmp_path, row, [40, 41])
    credit(tmp_path, row, [40, 41], trainer=[math.log(0.95) - 0.1], advantages=[0.5])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["show", str(tmp_path), str(row["rollout"]), "--color-by", by]) == 0
    spoken = capsys.readouterr().out.split("assistant", 1)[1].split("\n")[1]
    assert f"\x1b[{colour}m" in spoken


@pytest.mark.parametrize(("variable", "coloured"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
def test_colours_are_for_those_who_want_them(variable: str, coloured: bool, tiny_model: Path, tmp_path: Path) -> None:
    rows = read_record(a_run(tmp_path, tiny_model)).rollouts
    keep(tmp_path, rows[-1], [40, 41, 42])
    command = [sys.executable, "-m", "miles_lite", "show", str(tmp_path), str(rows[-1]["rollout"])]
    environment = {**os.environ, "TERM": "xterm-256color", variable: "1"}
    out = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True).stdout
    assert ("\x1b[3" in out) is coloured


@pytest.mark.parametrize("command", ["status", "tail", "show"])
def test_what_is_no_run_folder_is_said(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "none"), *(["0"] if command == "show" else [])]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_rollout_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, seed=1, steps=1)
    assert main(["show", str(tmp_path), "99"]) == 2
    assert "has no rollout 99; see rollouts/ in it, or miles-lite dash" in capsys.readouterr().err


def test_a_colour_is_named_and_drawn_for_each_place() -> None:
    assert {by: len(colours) for by, (_, colours) in COLOURS.items()} == {
        by: len(places) for by, (_, places) in PLACES.items()
    }


def test_moments_and_fractions_are_said_for_readers() -> None:
    assert rollout_table.format_value("started_at", 1.7e9).startswith("2023-11-1")
    assert rollout_table.format_value("started_at", 1e300) == "1e+300"
    assert [rollout_table.format_value("tool", value) for value in (0.5558218309997756, 3.0, 7, "x")] == [
        "0.5558",
        "3",
        "7",
        "x",
    ]


@pytest.mark.parametrize("command", ["status", "tail", "show"])
def test_a_reader_that_leaves_ends_a_command_without_a_word(command: str, tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, fault=FAULTS["failures"], steps=STEPS)
    more = {"status": [], "tail": ["--lines", "40"], "show": [str(32 * STEPS - 1)]}[command]
    reads, writes = os.pipe()
    os.close(reads)
    argv = [sys.executable, "-m", "miles_lite", command, str(tmp_path), *more]
    done = subprocess.run(argv, stdout=writes, stderr=subprocess.PIPE, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")
