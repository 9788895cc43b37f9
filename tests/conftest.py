"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.models import make_tiny_model
from tests.train.helpers import CORPUS, SIZE

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, whatever `--dist` says."""
    from tests.together import Together

    return Together(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Those of `-m e2e` are in few files: the others need not be imported, by each process of a run, to learn that."""
    wanted = str(config.option.markexpr).partition(" ")[0]
    if wanted not in ("e2e", "gpu") or not collection_path.name.startswith("test_"):
        return None
    return f"pytest.mark.{wanted}" not in collection_path.read_text(encoding="utf-8") or None


@pytest.fixture(scope="session", autouse=True)
def forked_engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines of this process's tests, and of what they start, are forked from one process that imports SGLang once."""
    if not any(item.get_closest_marker("e2e") for item in request.session.items):
        yield
        return
    from miles_lite.config.places import Topology
    from miles_lite.engine.fork_server import forking

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(request.config.rootpath))  # as those have it that start a command line
        with forking("cpu", Topology(), tmp_path_factory.mktemp("forks")):
            yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 folder, seed 0. Read only."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 20k-parameter model folder. Read only."""
    from miles_lite.init_model.build import init_model

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
