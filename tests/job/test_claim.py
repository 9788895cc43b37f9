"""Two processes and one run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.job.claim import claimed

HOLDER = """
import sys, time
from pathlib import Path
from miles_lite.job.claim import claimed
with claimed({"--run-dir": Path(sys.argv[1]), "--save": Path(sys.argv[2])}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_what_a_run_writes_into_is_one_processes_until_that_is_gone(tmp_path: Path) -> None:
    held = {"--run-dir": tmp_path / "a" / "run", "--save": tmp_path / "kept"}
    call = [sys.executable, "-c", HOLDER, *map(str, held.values())]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for flag, folder in held.items():
            mine = {"--run-dir": tmp_path / "other", flag: folder}
            with pytest.raises(UserError, match=rf"{flag} {folder}: another run is using it"), claimed(mine):
                pass
        holder.kill()
        holder.wait(10)
    for _ in range(2):
        with claimed(held):
            assert os.listdir(held["--run-dir"]) == []


def test_one_folder_for_both_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with claimed({"--run-dir": tmp_path / "run", "--save": tmp_path / "link"}):
        pass


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(UserError, match="--save /proc/kept: cannot be made"), claimed({"--save": Path("/proc/kept")}):
        pass
