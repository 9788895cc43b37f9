"""The room that is left is that of the fullest disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from miles_lite.observe.free_room import free_gb


def test_it_is_that_of_the_fullest_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = free_gb([tmp_path])
    assert real is not None
    assert 0 < real < shutil.disk_usage(tmp_path).total
    free = {"one": 5 * 10**9, "other": 2 * 10**9}

    def usage(folder: Path) -> object:
        if folder.name not in free:
            raise FileNotFoundError(folder)
        return shutil._ntuple_diskusage(10**10, 0, free[folder.name])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_gb(map(Path, ["one", "other", "gone"])) == 2.0
    assert free_gb([Path("gone")]) is None
