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
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_processes_until_that_is_gone(tmp_path: Path) -> None:
    run_dir = tmp_path / "a" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run_dir)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"--run-dir .*run: another run is using it"), claimed(run_dir):
            pass
        holder.kill()
        holder.wait(10)
    for _ in range(2):
        with claimed(run_dir):
            assert os.listdir(run_dir) == []
