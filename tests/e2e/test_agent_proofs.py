"""What training is for, measured outside of it: the agent command repairs repositories that no training saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.job import EXAMPLE, ROOT, assert_nothing_left, environment

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]


def command(*argv: str | Path, mark: str, **variables: str) -> None:
    done = subprocess.run(
        [str(word) for word in argv],
        env=environment(mark) | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2000,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert_nothing_left(mark)


def test_the_quickstarts_model_repairs_at_the_rate_that_training_reported(tmp_path: Path, mark: str) -> None:
    command(ROOT / "launchers" / "quickstart.sh", mark=mark, RUN_DIR=str(tmp_path))
    file = tmp_path / "debugger.json"
    command(sys.executable, EXAMPLE / "debugger.py", "--run-dir", tmp_path, "--json", file, mark=mark)
    numbers = json.loads(file.read_text())
    assert numbers["training_reported"] > 0.75
    assert abs(numbers["repaired"] - numbers["training_reported"]) < 0.12  # 96 episodes each: about 3 standard errors


def test_imitating_its_own_successes_makes_a_fresh_model_repair_more(tmp_path: Path, mark: str) -> None:
    command(EXAMPLE / "imitate.sh", tmp_path, mark=mark)
    before, after = (
        json.loads((tmp_path / "imitate" / f"{name}.json").read_text())["repaired"] for name in ("before", "after")
    )
    assert before < 0.45
    assert after > before + 0.3
