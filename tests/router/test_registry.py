from __future__ import annotations

import pytest

from miles_lite.errors import UserError
from miles_lite.router.registry import Registry, Worker, parse_worker


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
    assert first.set_aside
    assert registry.add(Worker("http://h:1")) is first
    assert not first.set_aside
    assert registry.add(Worker("http://h:1", "prefill", 8998)) is not first
    assert len(registry) == 1


def test_a_worker_is_found_by_id_and_by_url():
    registry = Registry()
    worker = registry.add(Worker("http://h:1"))
    assert registry.find(worker.id) is registry.find("http://h:1/") is worker
    registry.remove(worker)
    assert registry.find(worker.id) is None


def test_failures_in_a_row_set_a_worker_aside_and_one_answer_forgets_them():
    worker = Worker("http://h:1")
    for _ in range(2):
        worker.failed(patience=3)
    worker.answered()
    for _ in range(2):
        worker.failed(patience=3)
    assert not worker.set_aside
    worker.failed(patience=3)
    assert worker.set_aside
