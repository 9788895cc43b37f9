"""What keeps a local Ray cluster from starting is one message."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from miles_lite.cluster import connect
from miles_lite.errors import UserError


def test_a_temp_folder_that_ray_cannot_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    long, foreign = tmp_path / ("t" * 100), Path(tempfile.mkdtemp(prefix="ü"))
    long.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(foreign))
    for folder, words in ((long, "AF_UNIX path length"), (Path("/proc"), "/proc/ray"), (foreign, "'ascii' codec")):
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        with pytest.raises(
            UserError, match=f"cannot use a local Ray cluster: .*{words}(.|\n)*RAY_TMPDIR names another"
        ):
            connect(None)
