from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.job import EXAMPLE, MARK, Prepared, environment, left_running
from tests.processes import kill
from tests.shared import made_once


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Tasks and a model that has just learned the format, made as the quickstart makes them, only smaller."""
    prepare = [sys.executable, str(EXAMPLE / "prepare.py"), "--steps", "120"]

    def make(folder: Path) -> None:
        subprocess.run([*prepare, "--out", str(folder)], env=environment("prepare"), check=True, timeout=300)

    return Prepared(made_once(tmp_path_factory, "prepared", make))


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark for this test's processes; what is still there at the end is ended and fails the test."""
    value = uuid.uuid4().hex
    yield value
    left = left_running(value)
    kill(left)
    assert not left, f"{MARK}={value}: {len(left)} processes were left running"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"
