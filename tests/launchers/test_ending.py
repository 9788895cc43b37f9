from __future__ import annotations

import subprocess
from pathlib import Path

LAUNCHERS = Path(__file__).parents[2] / "launchers"
SCRIPT = f"""
. {LAUNCHERS / "common.sh"}
end_with_me
start bash -c 'trap "echo first; exit" TERM; touch first; for _ in {{1..400}}; do sleep 0.05; done'
bash -c 'trap "echo second; exit" TERM; touch second; for _ in {{1..400}}; do sleep 0.05; done' &
until [[ -e first && -e second ]]; do sleep 0.01; done
exit 7
"""
"""Both, also the one that nobody but the shell knows of, as where a signal comes right after its start."""


def test_a_launcher_ends_all_that_it_has_started_the_last_first(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()) == (7, ["second", "first"]), done.stderr
