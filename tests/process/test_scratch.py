"""Temp folders and their keepers, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from miles_lite.process import scratch
from miles_lite.stack.cluster import Scratch
from tests.waiting import wait_until


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temp folder of this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


OWNER = """
import subprocess, sys, tempfile, time
from miles_lite.stack.cluster import Scratch
from tests.waiting import wait_until
Scratch().enter()
child = '''import os, tempfile, time
open(tempfile.mkdtemp() + '/left', 'w')
print(os.getpid(), flush=True)
time.sleep(600)'''
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owners_folder_goes_once_nobody_uses_it(temp: Path, number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.send_signal(number)
        owner.wait(60)
        time.sleep(1.5)
        assert len(list(temp.glob("miles-lite-*/*/left"))) == 1, "its child still uses it"
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not list(temp.iterdir()), "the folder to go")


def test_the_folder_is_the_temp_folder_of_what_starts_in_it_and_what_is_to_last_goes_elsewhere(temp: Path) -> None:
    folder = Scratch()
    folder.enter()
    inside = tempfile.gettempdir()
    assert Path(inside).parent == temp
    assert scratch.lasting() == str(temp)
    Path(tempfile.mkdtemp(), "file").touch()
    folder.leave()
    folder.leave()
    assert tempfile.gettempdir() == str(temp)
    assert not list(temp.iterdir())


def test_whoever_comes_next_removes_what_killed_keepers_left_and_nothing_else(temp: Path) -> None:
    keeper = subprocess.Popen(
        [sys.executable, scratch.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdout is not None
    killed, held = keeper.stdout.readline().strip(), scratch.make()
    (temp / "miles-lite-mine").mkdir()
    keeper.kill()
    keeper.communicate(timeout=60)
    assert Path(killed).is_dir()
    scratch.sweep()
    assert sorted(temp.iterdir()) == sorted([Path(held), temp / "miles-lite-mine"])
    scratch.remove(held)
    assert list(temp.iterdir()) == [temp / "miles-lite-mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_what_another_user_left_and_noted_is_not_believed(temp: Path) -> None:
    theirs, mine = temp / "miles-lite-theirs", temp / "mine"
    theirs.mkdir()
    mine.touch()
    (theirs / ".lock").touch()
    scratch.register(str(theirs), {str(mine)})
    os.chown(theirs, 65534, 65534)
    scratch.sweep()
    assert mine.exists()
    assert theirs.exists()


def test_a_folder_whose_name_is_a_pattern_is_swept_too(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = temp / "a[b]*"
    left = odd / "miles-lite-left"
    left.mkdir(parents=True)
    (left / ".lock").touch()
    noted = temp / "noted"
    noted.touch()
    scratch.register(str(left), {str(noted)})
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    scratch.sweep()
    assert not left.exists()
    assert not noted.exists()


def test_what_an_agent_left_in_a_folder_is_neither_followed_nor_believed(temp: Path) -> None:
    left, kept = temp / "miles-lite-left", temp / "kept"
    inside = left / "sandbox-0" / "app"
    nested = left / "miles-lite-nested"
    for folder in (inside, nested, kept / "miles-lite-kept"):
        folder.mkdir(parents=True)
    (left / ".lock").touch()
    names = ["agents", "nested", "linked"]
    for name in names:
        (temp / name).touch()
    scratch.register(str(inside), {str(temp / "agents")})
    scratch.register(str(nested), {str(temp / "nested")})
    scratch.register(str(kept / "miles-lite-kept"), {str(temp / "linked")})
    (inside / "root").symlink_to("/")
    (inside / "miles-lite-link").symlink_to(kept)
    (left / "miles-lite-link").symlink_to(kept)
    scratch.sweep()
    assert not left.exists()
    assert sorted(path.name for path in temp.iterdir()) == ["agents", "kept", "linked"]


def test_who_outlives_the_one_that_started_it_is_ended(temp: Path) -> None:
    keeper = subprocess.Popen(
        [sys.executable, scratch.__file__, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdout is not None
    folder = keeper.stdout.readline().strip()
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.{}); print(flush=True); time.sleep(600)"
    inside = os.environ | {"TMPDIR": folder}

    def up(heeds: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code.format(heeds)], env=env, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with up("SIG_DFL", inside) as user, up("SIG_IGN", inside) as stubborn, up("SIG_DFL") as other:
        keeper.communicate(timeout=60)
        assert user.wait(60) == -signal.SIGTERM
        assert stubborn.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
    assert not list(temp.iterdir())
