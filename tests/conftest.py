"""Fixtures that several rooms share."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, whatever `--dist` says."""
    from tests.together import Together

    return Together(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that `-m` wants nothing of need not be imported, by each process of a run, to learn that: one without a
    mark that it asks for, or with a mark for the whole file that it asks to be without."""
    asked = str(config.option.markexpr)
    if not collection_path.name.startswith("test_") or re.search(r"\bor\b|[()]", asked):
        return None
    terms = [term.strip() for term in asked.split(" and ") if term.strip()]
    unwanted = {term.removeprefix("not ") for term in terms if term.startswith("not ")}
    text = collection_path.read_text(encoding="utf-8")
    whole = re.search(r"^pytestmark = (\[[^\]]*\]|.*)", text, re.MULTILINE)
    if whole and unwanted & set(re.findall(r"pytest\.mark\.(\w+)", whole[1])):
        return True
    return any(f"pytest.mark.{term}" not in text for term in terms if not term.startswith("not ")) or None


@contextlib.contextmanager
def forking(root: Path) -> Iterator[None]:
    """Engines and ranks that tests start, and what those start, are forked from two processes that import what they do
    once: this process's own, or those of the one that began it."""
    from miles_lite.config.places import Topology
    from miles_lite.engine.forked_engines import forking_engines
    from miles_lite.job.forked_workers import forking_workers

    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(prefix="forks-") as logs:
        patched.setenv("PYTHONPATH", str(root))  # as those have it that start a command line
        with forking_engines("cpu", Topology(), Path(logs)), forking_workers("cpu", Path(logs)):
            yield


def pytest_configure(config: pytest.Config) -> None:
    """With `-n`, whoever deals out tests that are marked `e2e` has what the others fork from."""
    if config.getoption("numprocesses", None) and "e2e" in config.option.markexpr.replace("not e2e", ""):
        forks = contextlib.ExitStack()
        config.add_cleanup(forks.close)
        forks.enter_context(forking(config.rootpath))


@pytest.fixture(scope="session", autouse=True)
def forked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever runs such tests by itself has it, too; whoever runs others alone forks nothing."""
    from miles_lite.stack.worker_start import FORK_SERVER

    if any(item.get_closest_marker("e2e") for item in request.session.items):
        with forking(request.config.rootpath):
            yield
    else:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(FORK_SERVER, os.devnull)
            yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 folder, seed 0. Read only."""
    from tests.models import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 20k-parameter model folder. Read only."""
    from miles_lite.init_model.build import init_model
    from tests.train.helpers import CORPUS, SIZE

    folder = tmp_path_factory.mktemp("model")
    init_model(folder, corpus=CORPUS, seed=1, **SIZE)
    return folder


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 64 KiB; skips where this user may mount none."""
    folder = tmp_path / "full-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk that is full takes a file system of its own: this user may not mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
