from __future__ import annotations

import subprocess
import sys

import pytest

from miles_lite.config.choices import WorkerType
from miles_lite.errors import UserError
from miles_lite.router.backend import Worker
from miles_lite.router.registration import parse_worker
from miles_lite.router.registry import Registry


def test_every_published_form_of_a_registration_is_understood():
    assert parse_worker({"worker_url": "http://h:1/"}).url == "http://h:1"
    prefill = parse_worker({"url": "http://h:1", "worker_type": "prefill", "bootstrap_port": "8998"})
    assert (prefill.worker_type, prefill.bootstrap_port) == ("prefill", 8998)
    assert parse_worker({"url": "https://[::1]:1", "worker_type": "decode"}).worker_type == "decode"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "url"),
        ({"url": "h:1"}, "must be http://host:port"),
        ({"url": "http://"}, "must be http://host:port"),
        ({"url": "http://h:99999"}, "must be http://host:port"),
        ({"url": "http://h:1?x=1"}, "must be http://host:port"),
        ({"url": "http://h:1/a b"}, "must be http://host:port"),
        ({"url": "http://h\n:1"}, "must be http://host:port"),
        ({"url": "http://h:1/\0"}, "must be http://host:port"),
        ({"url": "http://me:secret@h:1"}, "^url 'http://h:1' came with a user name or password"),
        ({"url": "http://me@h:1"}, "came with a user name or password"),
        *(
            ({"url": f"{odd}"}, "^url [^s]* came with")
            for odd in ("me:secret@h", "http:/m:secret@h", "//m:secret@[::1")
        ),
        ({"worker_url": "http://m:se@secret@h:99999"}, "^url 'http://h:99999' came with"),
        ({"url": "http://.example:1"}, "label empty"),
        ({"url": "http://" + "a" * 64 + ":1"}, "label too long"),
        ({"url": "http://h:1", "worker_type": "encode"}, "worker_type 'encode'"),
        ({"url": "http://h:1", "worker_type": "prefill"}, "bootstrap_port"),
        ({"url": "http://h:1", "bootstrap_port": "x"}, "bootstrap_port 'x'"),
    ],
)
def test_a_bad_registration_says_what_is_wrong(fields, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        parse_worker(fields)


def test_registering_twice_keeps_one_worker_and_a_new_role_replaces_it():
    registry = Registry()
    first = registry.add(Worker("http://h:1"))
    first.failed(patience=1)
    assert first.state == "unreachable"
    assert registry.add(Worker("http://h:1")) is first
    assert (first.state, first.failures) == ("ready", 0)
    assert registry.add(Worker("http://h:1", WorkerType.PREFILL, 8998)) is not first
    assert first.gone
    assert len(registry) == 1


def test_only_failures_in_a_row_set_a_worker_aside_and_a_trial_allows_none():
    worker = Worker("http://h:1")
    for _ in range(5):
        worker.failed(patience=2)
        worker.answered()
    assert worker.state == "ready"
    registry = Registry()
    worker = registry.add(worker)
    worker.failed(patience=2)
    worker.failed(patience=2)
    assert worker.state == "unreachable"
    registry.admit(worker, "3")
    assert (worker.state, worker.trial, worker.version) == ("ready", True, "3")
    worker.failed(patience=2)
    assert worker.state == "unreachable"


@pytest.mark.parametrize(
    ("accepted", "version", "state"),
    [((), None, "ready"), (("2", "1"), "1", "ready"), (("2",), "1", "stale"), (("2",), None, "stale")],
)
def test_the_gate(accepted, version, state):
    registry = Registry()
    registry.accept(*accepted)
    worker = registry.add(Worker("http://h:1"))
    registry.admit(worker, version)
    assert worker.state == state


def test_a_worker_is_found_by_id_and_by_url_until_it_has_drained():
    registry = Registry()
    worker = registry.add(Worker("http://h:1"))
    assert registry.find(worker.id) is registry.find("http://h:1/") is worker
    worker.in_flight = 1
    registry.drain(worker)
    assert registry.find(worker.id) is worker
    worker.in_flight = 0
    registry.settle(worker)
    assert registry.find(worker.id) is None
    assert worker.gone


KILLED = """
import os, signal, sys, time
from pathlib import Path
from miles_lite.router.registry import Registry
from miles_lite.router.backend import Worker

path = Path(sys.argv[1])
registry = Registry(path)
for port in range(1, 101):
    registry.add(Worker(f"http://h:{port}"))
for kill in range(20):
    if (child := os.fork()) == 0:
        while True:
            registry.save()
    time.sleep(0.01 + kill / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(Registry(path)) == 100
"""


@pytest.mark.e2e
def test_a_router_that_is_killed_while_it_writes_leaves_a_whole_file_and_at_most_one_draft(tmp_path):
    path = tmp_path / "state.json"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, timeout=60)
    assert {file.name for file in tmp_path.iterdir()} <= {"state.json", ".state.json.draft"}
