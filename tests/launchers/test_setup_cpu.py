"""scripts/setup-cpu.sh: what a newcomer reads, with a pip that says what pip says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup-cpu.sh"

PYTHON = f"""#!/usr/bin/env bash
# Python 3.11 whose `pip install` prints $PIP_SAYS and ends with $PIP_ENDS.
case "$*" in
  *install*) printf '%s' "$PIP_SAYS" >&2; exit "$PIP_ENDS" ;;
  *--version*) ;;
  *) exec {sys.executable} "$@" ;;
esac
"""

HEADER = (
    "ERROR: pip's dependency resolver does not currently take into account all the packages that are installed. "
    "This behaviour is the source of the following dependency conflicts.\n"
)
PLANNED = (
    "sglang 0.5.23 requires flashinfer_python, which is not installed.\n"
    "sglang 0.5.23 requires torch==2.14.1, but you have torch 2.13.0 which is incompatible.\n"
)
SURPRISE = "wandb 0.31.0 requires protobuf<7, but you have protobuf 8.0 which is incompatible.\n"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path / "venv"


def setup(venv: Path, says: str, ends: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT],
        env={**os.environ, "VENV": str(venv), "PIP_SAYS": says, "PIP_ENDS": str(ends), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_says_what_it_reads_and_installs_nothing(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv")}
    done = subprocess.run([SCRIPT, "--help"], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert all(name in done.stdout for name in ("--dev", "VENV", "PYTHON", "TORCH_INDEX_URL"))
    assert list(tmp_path.iterdir()) == []


def test_planned_complaints_become_one_line_and_done_steps_are_skipped(venv: Path) -> None:
    done = setup(venv, HEADER + PLANNED)
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
    assert "2 GPU-only or newer requirements of packages such as sglang stay unmet, as planned" in done.stderr
    again = setup(venv, HEADER + PLANNED)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_other_complaints_are_shown(venv: Path) -> None:
    done = setup(venv, HEADER + PLANNED + SURPRISE)
    assert HEADER + SURPRISE in done.stderr
    assert "flashinfer" not in done.stderr


def test_a_failure_is_shown_and_stops(venv: Path) -> None:
    done = setup(venv, "ERROR: No matching distribution found for torch==2.13.0\n", ends=1)
    assert done.returncode == 1
    assert "No matching distribution" in done.stderr
    assert "step 'torch' failed" in done.stderr


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    done = setup(tmp_path / "mine", "", PYTHON=sys.executable)
    assert done.returncode == 1
    assert "is no virtual environment" in done.stderr
    assert (tmp_path / "mine" / "file").exists()


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    done = setup(tmp_path / "venv", "", PYTHON="python3.11-absent")
    assert done.returncode == 1
    assert "'python3.11-absent' not found" in done.stderr
