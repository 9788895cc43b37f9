"""What names a prompt's folder, and what is asked of the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from miles_lite.agent.prompt_cache import PAGE, PromptCache, prompt_cache
from miles_lite.commands import agent
from miles_lite.errors import UserError
from tests.http_server import Request, http_server


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def cache(model: Path, root: Path, **given: Any) -> PromptCache:
    settings: dict[str, Any] = {"ids": range(100), "system": "You are", "tools": [], "flags": {}}
    return prompt_cache(root, model=model, **settings | given)


def test_the_same_things_have_the_same_folder(model: Path, tmp_path: Path) -> None:
    folders = {cache(model, tmp_path / "root").folder for _ in range(2)}
    assert [len(folder.name) for folder in folders] == [64]


@pytest.mark.parametrize(
    "other",
    [{"ids": range(99)}, {"system": "You were"}, {"tools": [{"name": "t"}]}, {"flags": {"dtype": "bfloat16"}}],
)
def test_another_prompt_tool_or_setting_has_another_folder(model: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    assert cache(model, tmp_path).folder != cache(model, tmp_path, **other).folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_another_model_of_the_same_size_has_another_folder(model: Path, tmp_path: Path, file: str) -> None:
    before = cache(model, tmp_path).folder
    data = bytearray((model / file).read_bytes())
    if file == "config.json":
        data = bytearray(json.dumps(json.loads(data) | {"num_hidden_layers": 3}).encode())
    else:
        data[len(data) // 2] ^= 1
    (model / file).write_bytes(data)
    assert cache(model, tmp_path).folder != before


@pytest.mark.parametrize(("count", "tokens"), [(0, 0), (PAGE, 0), (PAGE + 1, PAGE), (3 * PAGE, 2 * PAGE)])
def test_whole_pages_are_loaded_and_one_token_is_left_to_compute(tmp_path: Path, count: int, tokens: int) -> None:
    assert PromptCache(folder=tmp_path, ids=range(count)).tokens == tokens


@contextmanager
def engine(folder: Path, *, pages: int, cached: int) -> Iterator[tuple[str, list[str]]]:
    """An engine that writes `pages` and says that `cached` tokens were; and what it was asked."""
    asked: list[str] = []

    def reply(request: Request) -> Any:
        if request.method == "DELETE":
            asked.append(f"DELETE {request.path} {request.headers['Authorization']}")
            return "Detached."
        asked.append(f"POST {request.path} {len(request.body['input_ids'])}")
        for page in range(pages):
            (folder / f"{page}.bin").touch()
        return {"meta_info": {"cached_tokens": cached}}

    with http_server(reply) as url:
        yield url, asked


def test_the_storage_is_taken_away_once_the_prompt_is_written(tmp_path: Path) -> None:
    cache = PromptCache(folder=tmp_path, ids=range(3 * PAGE + 1), admin_key="k")
    with engine(tmp_path, pages=3, cached=2 * PAGE) as (url, asked):
        assert cache.warm(url) == 2 * PAGE
    assert asked == [f"POST /generate {3 * PAGE + 1}", "DELETE /hicache/storage-backend Bearer k"]


@pytest.mark.parametrize(("cached", "said"), [(0, False), (PAGE, False), (2 * PAGE, True)])
def test_a_prompt_is_said_to_be_loaded_only_when_all_of_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cached: int, said: bool
) -> None:
    cache = PromptCache(folder=tmp_path, ids=range(2 * PAGE + 1))
    with engine(tmp_path, pages=2, cached=cached) as (url, _):
        agent._warm(cache, url)
    line = f"loaded system-prompt cache ({2 * PAGE} tokens) — skipping prefill\n"
    assert capsys.readouterr().err == (line if said else "")


def test_an_engine_that_writes_nothing_is_an_error_not_a_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miles_lite.agent.prompt_cache.WRITE_SECONDS", 0.1)
    cache = PromptCache(folder=tmp_path, ids=range(3 * PAGE + 1))
    with engine(tmp_path, pages=2, cached=0) as (url, _), pytest.raises(UserError, match="did not write 3 pages"):
        cache.warm(url)
