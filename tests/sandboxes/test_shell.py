"""The executor on real processes. What must be gone is found by a mark in its environment, never by name."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.sandboxes.shell import KEEP, Confinement, Shell, assignments, clipped, quoted
from tests.processes import below, called
from tests.sandboxes.kinds import needs_bwrap

ROOT = str(Path(__file__).resolve().parents[2])
SANDBOXES = [Confinement.NONE, pytest.param(Confinement.BWRAP, marks=needs_bwrap)]


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with Shell(timeout=60) as shell:
        yield shell


def echoed(shell: Shell, value: str) -> str:
    """What bash makes of a quoted value, as the hexadecimal digest of its bytes."""
    outcome = shell.run(assignments({"x": value}) + 'printf %s "$x" | sha256sum')
    assert outcome.exit_code == 0, outcome
    return outcome.stdout.split()[0]


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200))
def test_any_text_reaches_a_variable_as_it_is(shell: Shell, value: str) -> None:
    assert echoed(shell, value) == digest(value)


def test_every_code_point_reaches_a_variable_as_it_is(shell: Shell) -> None:
    points = [chr(point) for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 1 << 17):
        value = "".join(points[start : start + (1 << 17)])
        assert echoed(shell, value) == digest(value)


@pytest.mark.parametrize("unit", ["'", "\\", "$(id)`id`", "\n", "é", "a b"])
def test_a_mebibyte_reaches_a_variable_as_it_is(shell: Shell, unit: str) -> None:
    value = unit * (2**20 // len(unit.encode()))
    assert echoed(shell, value) == digest(value)


@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_quoted_value_is_one_word(value: str) -> None:
    assert shlex.split(quoted(value)) == [value]


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_a_child_sees_path_home_and_lang_and_nothing_else(
    sandbox: Confinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    with Shell(sandbox=sandbox) as shell:
        outcome = shell.run("x=1\nenv -u _ -u PWD -u SHLVL -u OLDPWD env | cut -d= -f1 | sort")
        assert outcome.stdout.split() == ["HOME", "LANG", "PATH"]
        assert shell.run("cat; echo end").stdout == "end\n"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(out=st.integers(0, 5 * KEEP), err=st.integers(0, 5 * KEEP))
def test_each_stream_is_capped_and_says_what_is_missing(shell: Shell, out: int, err: int) -> None:
    outcome = shell.run(f"head -c {out} /dev/zero | tr '\\0' a; head -c {err} /dev/zero | tr '\\0' b >&2; exit 3")
    expected = ["a" * out, "b" * err]
    cut = [text if len(text) <= KEEP else f"{text[:KEEP]}…[truncated {len(text) - KEEP} bytes]" for text in expected]
    assert [outcome.stdout, outcome.stderr] == cut
    assert outcome.exit_code == 3


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=8), times=st.integers(1, 4 * KEEP))
def test_clipping_keeps_whole_characters_and_counts_bytes(text: str, times: int) -> None:
    whole = text * times
    shown, marked, rest = clipped(whole).partition("…[truncated ")
    if marked and len(whole.encode()) > KEEP:
        assert whole.startswith(shown)
        assert len(shown.encode()) + int(rest.removesuffix(" bytes]")) == len(whole.encode())
        assert KEEP - 3 <= len(shown.encode()) <= KEEP
    else:
        assert clipped(whole) == whole


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize(
    "script",
    {
        "sleeps": "sleep 1000",
        "ignores SIGTERM": "trap '' TERM; while :; do sleep 1000; done",
        "background": "sleep 1000 & sleep 1000",
        "leaves the session": "setsid sh -c 'trap \"\" TERM; sleep 1000; :' mark-{mark} & sleep 1000",
        "double fork": "(setsid sh -c '(trap \"\" TERM; sleep 1000; :) & ' &) ; sleep 1000",
        "forks for ever": "while :; do (trap '' TERM; sleep 1000) & sleep 0.01; done",
        "writes for ever": "yes",
        "writes to both for ever": "yes & yes >&2",
        "stops itself": "kill -STOP $$",
    }.values(),
)
def test_nothing_survives_the_time_limit(sandbox: Confinement, script: str) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with Shell(timeout=0.7, sandbox=sandbox) as shell:
        outcome = shell.run(f"sh -c 'sleep 1000; :' {mark} &\n" + script.replace("{mark}", mark))
        assert outcome.exit_code == 124
        assert outcome.stderr.endswith("[timed out after 0.7 s]")
        assert not called(mark)
        assert _children(shell) == []
        assert len(outcome.stdout) < 2 * KEEP
        assert shell.run("echo again", timeout=60).stdout == "again\n"


BOMB = "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) & bomb $(($1 - 1)) & fi; sleep 1000; }; "


@pytest.mark.parametrize("call", ["bomb 9", "bomb 9 & disown; sleep 0.5", "setsid bash -c 'eval \"$BOMB\"; bomb 9'"])
def test_a_script_of_too_many_processes_is_ended_while_they_can_be_found(call: str) -> None:
    with Shell(timeout=60) as shell:
        outcome = shell.run(f"export BOMB={shlex.quote(BOMB)}\n{BOMB}\n{call}")
        assert outcome.exit_code in (137, 0)
        assert "could not be ended" not in outcome.stderr
        assert outcome.exit_code == 0 or "[ended: it had more than 512 processes]" in outcome.stderr
        assert _children(shell) == []
        assert shell.run("echo again").stdout == "again\n"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_script_can_hold_is_an_outcome(shell: Shell, text: str) -> None:
    assert shell.run(f"echo {text}").exit_code in (0, 126, 127)
    assert shell.run("echo again").stdout == "again\n"


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_what_a_script_leaves_behind_ends_with_it(sandbox: Confinement) -> None:
    with Shell(timeout=30, sandbox=sandbox) as shell:
        outcome = shell.run("setsid nohup sleep 1000 >/dev/null 2>&1 &\n(sleep 1000 &)\necho done")
        assert (outcome.stdout, outcome.exit_code) == ("done\n", 0)
        assert _children(shell) == []


def test_a_polite_script_hears_the_sigterm() -> None:
    with Shell(timeout=0.5) as shell:
        outcome = shell.run("trap 'echo farewell; exit 0' TERM; while :; do sleep 0.05; done")
    assert outcome.stdout == "farewell\n"
    assert outcome.exit_code == 124


def test_exit_codes_are_those_of_shells(shell: Shell) -> None:
    assert shell.run("exit 7").exit_code == 7
    assert shell.run("kill -KILL $$").exit_code == 137
    assert shell.run("nosuchcommand").exit_code == 127
    assert shell.run("if").exit_code == 2


def test_everything_ends_when_the_owner_dies(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    script = f"setsid sh -c 'sleep 1000; :' {mark} & sleep 1000"
    owner = f"from miles_lite.sandboxes.shell import Shell\nShell().run({script!r})"
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    deadline = time.monotonic() + 60
    while not called(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert called(mark)
    process.kill()
    process.wait()
    while called(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not called(mark)


def test_a_tool_that_kills_its_guard_is_an_outcome_not_a_crash() -> None:
    with Shell() as shell:
        assert shell.run("kill -KILL $PPID; exec sleep 1000").exit_code == 137
        assert shell.run("echo again").stdout == "again\n"


@needs_bwrap
def test_the_sandbox_has_a_read_only_root_a_private_tmp_and_no_network(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    with Shell(sandbox=Confinement.BWRAP, folder=inside) as shell:
        assert shell.run("pwd; echo kept > here").stdout == f"{inside}\n"
        assert (inside / "here").read_text() == "kept\n"
        assert shell.run("touch /usr/x /etc/x").exit_code != 0
        name = f"/tmp/{uuid.uuid4().hex}"
        assert shell.run(f"touch {name}; ls {name}").exit_code == 0
        assert not Path(name).exists()
        assert shell.run("sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev").stdout == "lo\n"
        assert int(shell.run("ls /proc | grep -c '^[0-9]'").stdout) < 8
        assert shell.run("dd if=/dev/zero of=/dev/null bs=5G count=1").exit_code != 0
    with Shell(sandbox=Confinement.BWRAP, folder=None) as shell:
        assert shell.run(f"touch {Path.cwd()}/x").exit_code != 0


def test_a_folder_that_is_missing_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        Shell(folder=tmp_path / "missing")


def _children(shell: Shell) -> list[psutil.Process]:
    assert shell._guard is not None
    return below(shell._guard.pid)
