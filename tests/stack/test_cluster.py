"""What keeps a local Ray cluster from starting is one message; and which processes one has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.clusters import local_cluster
from tests.processes import below, command_of

pytestmark = pytest.mark.e2e
CONNECT = "from miles_lite.stack.cluster import connect; connect(None)"


def test_a_temp_folder_that_ray_cannot_use_is_named(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In processes of their own: a Ray that did not start ends its process a minute later."""
    long, foreign = tmp_path / ("t" * 100), Path(tempfile.mkdtemp(prefix="ü"))
    long.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(foreign))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def said(folder: Path) -> str:
        return subprocess.run(
            [sys.executable, "-c", CONNECT],
            env=environment | {"RAY_TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        ).stderr

    folders = {long: "AF_UNIX path length", Path("/proc"): "/proc/ray", foreign: "'ascii' codec"}
    with ThreadPoolExecutor(len(folders)) as at_once:
        for words, text in zip(folders.values(), at_once.map(said, folders), strict=True):
            told = rf"UserError: cannot use a local Ray cluster: .*{words}(.|\n)*RAY_TMPDIR names another"
            assert re.search(told, text), text


def test_a_cluster_has_no_process_that_nobody_asks_and_an_actor_its_variables() -> None:
    with local_cluster(cpus=1):
        remote: Any = ray.remote(Told)
        actor = remote.options(num_cpus=0, runtime_env={"env_vars": {"TOLD": "a b'c"}}).remote()
        assert ray.get(actor.variable.remote("TOLD"), timeout=60) == "a b'c"
        words = [command_of(each) for each in below(os.getpid())]
    assert any("gcs_server" in each for each in words)
    assert not [each for each in words if re.search(r"(monitor|dashboard)\.py", each)]


class Told:
    def variable(self, name: str) -> str:
        return os.environ[name]
