"""The guard and its owner, with small commands in the place of SGLang."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.engine import server_guard
from miles_lite.engine.ports import require_free
from miles_lite.engine.server_process import FORK_SERVER, ServerProcess
from miles_lite.errors import UserError
from miles_lite.process import scratch
from miles_lite.process.fork_server import fork_server
from tests.ports import free_port
from tests.processes import below, called, command_of, kill, running_after, runs, tree_of
from tests.waiting import wait_until

STUBBORN_TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", os.environ["TREE"]])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", os.environ["TREE"]], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""
OWNER = """
import os, sys, time
from pathlib import Path
from miles_lite.engine.server_process import ServerProcess
command = [sys.executable, "-c", sys.argv[1], os.environ["TREE"]]
server = ServerProcess.launch(command, env=os.environ, log_path=Path(sys.argv[2]))
time.sleep(600)
"""


@pytest.fixture(scope="module")
def socket_of_a_fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fork_server(("json",), os.environ, tmp_path_factory.mktemp("forks") / "log") as at:
        yield at


@pytest.fixture(autouse=True, params=["executed", "forked"])
def started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server of these tests is."""
    if request.param == "forked":
        monkeypatch.setenv(FORK_SERVER, request.getfixturevalue("socket_of_a_fork_server"))
    else:
        monkeypatch.delenv(FORK_SERVER, raising=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_owner_ends_the_whole_tree(tmp_path: Path, number):
    mark, log = f"tree-{os.getpid()}-{number}", tmp_path / "log"
    env = {**os.environ, "TREE": mark}
    with subprocess.Popen([sys.executable, "-c", OWNER, STUBBORN_TREE, str(log)], env=env) as owner:
        wait_until(lambda: len(called(mark)) >= 3, "the tree to grow")
        owner.send_signal(number)
    wait_until(lambda: not called(mark), "the tree to end")


@given(st.lists(st.sampled_from([b"key", b"ke", b"y-1", b"key-", b"\n", b"x"]), max_size=12), st.data())
def test_a_log_never_holds_a_secret_however_it_comes(words: list[bytes], data: st.DataObject):
    """The copy is the whole with each secret replaced, whatever pieces it is written in, and nothing is held back."""
    secrets, whole = [b"key-1"], b"".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in itertools.pairwise([0, *cuts, len(whole)])]
    (source, sending), (reading, target) = os.pipe(), os.pipe()
    copying = threading.Thread(target=server_guard.copy_hiding, args=(source, target, secrets))
    copying.start()
    for piece in filter(None, pieces):
        os.write(sending, piece)
    os.close(sending)
    copying.join(10)
    os.close(target)
    with open(reading, "rb") as copied:
        assert copied.read() == whole.replace(b"key-1", b"***")
    os.close(source)


async def test_a_servers_log_is_its_owners_alone_and_without_its_keys(tmp_path: Path):
    log = tmp_path / "log"
    log.touch(0o644)
    say = "import sys; print(sys.argv[1:], flush=True)"
    command = [sys.executable, "-c", say, "--admin-api-key", "s3cret"]
    server = ServerProcess.launch(command, env=os.environ, log_path=log, secrets=["s3cret"])
    await server.wait()
    await server.stop()
    assert log.read_text() == "['--admin-api-key', '***']\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_stop_ends_the_whole_tree_and_can_be_repeated(tmp_path: Path):
    mark = f"tree-{os.getpid()}-stop"
    command = [sys.executable, "-c", STUBBORN_TREE, mark]
    server = ServerProcess.launch(command, env={**os.environ, "TREE": mark}, log_path=tmp_path / "log")
    wait_until(lambda: "up" in (tmp_path / "log").read_text(), "the tree to grow")
    assert runs(server.pid)
    for _ in range(2):
        await server.stop()
        assert not called(mark)


async def test_shared_memory_of_killed_processes_is_removed(tmp_path: Path):
    name = f"sgl_shm_test-{os.getpid()}"  # nobody else's
    code = f"import os, time; open(f'/dev/shm/{name}_{{os.getpid()}}_0', 'w').close(); time.sleep(600)"
    tree = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    server = ServerProcess.launch([sys.executable, "-c", tree], env=os.environ, log_path=tmp_path / "log")
    other = Path(f"/dev/shm/{name}_{os.getpid()}_0")
    other.touch()
    try:
        wait_until(lambda: len(list(other.parent.glob(f"{name}_*"))) == 2, "the segment")
        await server.stop()
        assert list(other.parent.glob(f"{name}_*")) == [other]
    finally:
        other.unlink()


LITTERING = """
import mmap, os, sys, tempfile, time
if os.fork() == 0:
    with open("/dev/shm/sglang_loads_" + sys.argv[1], "w+b") as file:
        file.truncate(4096)
        held = mmap.mmap(file.fileno(), 4096)
    tempfile.NamedTemporaryFile(delete=False)
    tempfile.mkdtemp(prefix="pymp-")
    os.makedirs(tempfile.gettempdir() + "/torchinductor_me/x")
    print("littered", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["it is stopped", "its owner is killed", "it is killed", "its guard is killed"])
def test_what_a_server_left_in_shared_memory_and_in_its_temp_folder_is_gone_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    temp, log, name = tmp_path / "temp", tmp_path / "log", f"test_{os.getpid()}.shm"
    temp.mkdir()
    segment, other = Path(f"/dev/shm/sglang_loads_{name}"), Path(f"/dev/shm/sglang_loads_other_{name}")
    other.touch()
    env = {**os.environ, "TREE": name, "TMPDIR": str(temp)}
    owner = psutil.Popen([sys.executable, "-c", OWNER, LITTERING, str(log)], env=env)
    try:
        wait_until(lambda: log.exists() and "littered" in log.read_text(), "the litter")
        assert segment.exists()
        assert len(list(temp.glob("miles-lite-*/[!.]*"))) == 3
        notes = "miles-lite-*/.noted"
        wait_until(lambda: any(str(segment) in each.read_text() for each in temp.glob(notes)), "the guard to look")
        (server_guard,) = [one for one in called(name) if "server_guard.py" in command_of(one)]
        if how == "its owner is killed":
            owner.kill()
        elif how == "it is stopped":
            server_guard.terminate()
        elif how == "its guard is killed":
            server_guard, *left = tree_of(server_guard.pid)
            kill([server_guard, *left])
            assert not running_after(left)
            monkeypatch.setenv("TMPDIR", str(temp))
            monkeypatch.setattr(tempfile, "tempdir", None)
            scratch.sweep()  # as the run's keeper removes the folder that this one is in, or the next run does
        else:
            kill(below(server_guard.pid))
        wait_until(lambda: not segment.exists() and not list(temp.iterdir()), "the litter to go")
        assert other.exists()
    finally:
        owner.kill()
        owner.wait()
        other.unlink()


async def test_a_server_that_exits_leaves_no_child(tmp_path: Path):
    mark = f"tree-{os.getpid()}-exit"
    code = STUBBORN_TREE.removesuffix("time.sleep(600)\n") + "sys.exit(3)"
    command = [sys.executable, "-c", code, mark]
    server = ServerProcess.launch(command, env={**os.environ, "TREE": mark}, log_path=tmp_path / "log")
    wait_until(lambda: server.exit_code is not None, "the guard to exit")
    assert server.exit_code == 3
    assert not called(mark)
    await server.stop()


def launch_and_wait(code: str, log: Path, timeout: float) -> None:
    async def scenario():
        server = ServerProcess.launch([sys.executable, "-c", code], env=os.environ, log_path=log)
        try:
            await server.wait_healthy(f"http://127.0.0.1:{free_port('127.0.0.1')}", timeout)
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_a_server_that_dies_shows_its_last_lines_and_its_log(tmp_path: Path):
    log = tmp_path / "logs" / "engine.log"
    with pytest.raises(UserError) as caught:
        launch_and_wait("import sys; print('s' * 20_000); print('boom: no memory'); sys.exit(7)", log, 30)
    assert "exit code 7" in str(caught.value)
    assert "sss ..." in str(caught.value)
    assert max(map(len, str(caught.value).splitlines())) < 400
    assert "boom: no memory" in str(caught.value)
    assert str(log) in str(caught.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path):
    with pytest.raises(UserError, match=r"not healthy after 0\.3 s") as caught:
        launch_and_wait("import time; print('still loading', flush=True); time.sleep(600)", tmp_path / "log", 0.3)
    assert "--engine-start-timeout" in str(caught.value)


def test_a_port_in_use_is_refused_with_its_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--sglang-port {port}: cannot listen"):
            require_free("127.0.0.1", port, "--sglang-port")
    assert require_free("127.0.0.1", port, "--sglang-port") == port
