"""examples/minimal.py: a whole run in Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "minimal.py"


@pytest.mark.e2e
@pytest.mark.slow
def test_the_model_learns(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"reward: ([\d.]+) at first, ([\d.]+) in the end", done.stdout)
    assert said is not None
    first, last = map(float, said.groups())
    assert last > first + 0.05


def test_it_stays_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 45
