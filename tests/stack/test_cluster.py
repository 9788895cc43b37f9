"""What keeps a local Ray cluster from starting is one message."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
CONNECT = "from miles_lite.stack.cluster import connect; connect(None)"


def test_a_temp_folder_that_ray_cannot_use_is_named(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In processes of their own: a Ray that did not start ends its process a minute later."""
    long, foreign = tmp_path / ("t" * 100), Path(tempfile.mkdtemp(prefix="ü"))
    long.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(foreign))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for folder, words in ((long, "AF_UNIX path length"), (Path("/proc"), "/proc/ray"), (foreign, "'ascii' codec")):
        said = subprocess.run(
            [sys.executable, "-c", CONNECT],
            env=environment | {"RAY_TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        ).stderr
        told = rf"UserError: cannot use a local Ray cluster: .*{words}(.|\n)*RAY_TMPDIR names another"
        assert re.search(told, said), said
