"""Model folders with real tokenizers and templates, each written once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.clients.stage import Folders
from tests.tito.material import save_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    at = tmp_path_factory.mktemp("models")

    @cache
    def folder(name: str) -> Path:
        return save_model(at / name, name, eos="<|im_end|>", model_type="qwen3", vocab_size=151_936)

    return folder
