"""What a guard says of a server, however its words arrive."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from miles_lite.engine.guards import ForkedGuard
from miles_lite.process.fork_server_main import GuardedRequest


def test_of_a_server_that_ends_at_once_its_pid_and_its_exit_code_are_known(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(at := str(tmp_path / "socket"))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as asked:
            asked.readline()
            connection.sendall(f"{os.getpid()} 1234\n7\n".encode())

    thread = threading.Thread(target=answer)
    thread.start()
    request = GuardedRequest(command=["server"], env={}, folder="/", guard="", log="", grace=1.0, secrets=[])
    guard = ForkedGuard.at(at, request, seconds=10)
    thread.join(10)
    listener.close()
    assert guard is not None
    assert (guard.server, guard.exit_code) == (1234, 7)
    guard.kill()
    assert guard.exit_code == 7
