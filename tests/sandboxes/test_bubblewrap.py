"""What a command in bubblewrap sees of this machine, and what of its work lasts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from miles_lite.sandboxes.bubblewrap import SYSTEM, View
from tests.sandboxes.kinds import needs_bwrap


def said(view: View, script: str) -> str:
    return subprocess.run([*view.command, "sh", "-c", script], capture_output=True, text=True, timeout=60).stdout


@needs_bwrap
def test_of_this_machine_all_is_seen_and_one_folder_written(tmp_path: Path) -> None:
    inside, shown, hidden = (tmp_path / name for name in ("inside", "shown", "hidden"))
    for each in (inside, shown, hidden):
        each.mkdir()
    script = f"pwd; ls {tmp_path}; touch kept /etc/x {shown}/x /tmp/own 2>&1 | grep -c Read-only; ls /tmp/own"
    view = View.of_machine(inside, shown=[str(shown), "/usr"])
    assert said(view, script).split() == [str(inside), "inside", "shown", "2", "/tmp/own"]
    assert [each.name for each in inside.iterdir()] == ["kept"]
    assert said(View.of_machine(inside, writable=False), "ls; touch kept2") == "kept\n"
    assert not (inside / "kept2").exists()


@needs_bwrap
def test_without_a_root_nothing_is_seen_but_what_is_shown(tmp_path: Path) -> None:
    view = View(begins=str(tmp_path), empty=("/tmp",), shown=(*SYSTEM, "/not/there"), writable=str(tmp_path))
    assert view.flaw() is None
    assert said(view, f"ls {Path(__file__).parent} /home /root /not; touch {tmp_path}/kept; wc -l < /proc/net/dev") == (
        "3\n"
    )
    assert (tmp_path / "kept").exists()


def test_what_does_not_work_here_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "bwrap"
    stand_in.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2; exit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "does not work here, which needs unprivileged user namespaces: No permissions" in str(
        View(begins="/").flaw()
    )
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert View(begins="/").flaw() == "bubblewrap is not installed (its command is bwrap)"
