from __future__ import annotations

import socket
import subprocess
import sys

from miles_lite.engine.ports import FIRST, LAST, Ports, listenable

HOST = "127.0.0.1"
TAKE_ALL = """
import sys
from miles_lite.engine import ports
ports.FIRST, ports.LAST = int(sys.argv[1]), int(sys.argv[1]) + 4
held = ports.Ports()
try:
    while True:
        print(held.reserve("127.0.0.1"), flush=True)
except ports.UserError:
    print("none", flush=True)
sys.stdin.readline()
"""


def test_no_port_is_held_twice_until_it_is_released():
    one, other = Ports(), Ports()
    ports = [one.reserve(HOST) for _ in range(20)] + [other.reserve(HOST) for _ in range(20)]
    assert len(set(ports)) == 40
    assert all(FIRST <= port < LAST for port in ports)
    one.release()
    one.release()
    other.release()


def test_ports_in_a_row_are_all_held():
    held = Ports()
    first = held.reserve(HOST, consecutive=10)
    assert len(held._locks) == 10
    assert all(listenable(HOST, port) is None for port in range(first, first + 10))
    held.release()


def test_another_process_gets_other_ports_and_what_a_dead_one_held():
    probe = Ports()
    base = probe.reserve(HOST, consecutive=4)
    probe.release()
    command = [sys.executable, "-c", TAKE_ALL, str(base)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    taken = [first.stdout.readline().strip() for _ in range(5)]
    assert taken[-1] == "none"
    assert len(set(taken[:-1])) == 4
    second = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
    assert second.stdout.split() == ["none"]
    first.kill()
    first.communicate()
    third = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
    assert set(third.stdout.split()) == set(taken)


def test_a_port_somebody_listens_on_is_not_chosen():
    held = Ports()
    port = held.reserve(HOST)
    held.release()
    with socket.socket() as server:
        server.bind((HOST, port))
        server.listen()
        assert listenable(HOST, port) is not None
