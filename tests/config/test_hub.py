"""Model ids: from the cache, or one message."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from miles_lite.config.hub import model_path
from miles_lite.errors import UserError

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_an_id_is_the_folder_that_is_cached_for_it(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--some--model"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    assert model_path("some/model") == str(snapshot)


def test_folders_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for given in ("runs/model", "./some/model", "model", "a/b/c"):
        assert model_path(given) == str((tmp_path / given).absolute())
    assert model_path(None) is None


def test_what_is_neither_is_said() -> None:
    with pytest.raises(
        UserError, match=r"(?s)some/other: no such folder, not in the cache .* run `hf download some/other`"
    ):
        model_path("some/other")
