"""The state of the system prompt, kept on disk from one launch of `miles-lite agent` to the next.

SGLang's hierarchical cache, with its file storage, holds the keys and values of the prompt's tokens by pages of `PAGE`.
A prompt's folder is named after the SHA-256 of all that its state depends on, so another model, prompt, tool, setting
or SGLang has another folder, and nothing stale is ever read.

Invariant: a folder holds pages of one prompt alone. Storage is taken from the engine before the first user turn, so no
conversation is written; and `warm` counts what the engine itself says that it did not compute.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from miles_lite.errors import UserError
from miles_lite.model_folder import fingerprint, model_config
from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

PAGE = 16
"""Tokens per page; what is left over at the end of the prompt is computed at every launch."""
SAMPLE = 1 << 20
"""Bytes of a weight file, from its middle, that its fingerprint covers besides name, size and time."""
HOST_GB = 2
"""Memory between the engine's and the disk; bounds the prompt, at 100 KB per token to 20,000 tokens."""
CALL_SECONDS = 300.0
WRITE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCache:
    """One prompt of one model. `ids`: the tokens that every conversation begins with."""

    folder: Path
    ids: Sequence[int]
    admin_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def tokens(self) -> int:
        """How many of the ids can be loaded: whole pages, and at least one token is always computed."""
        return max(0, len(self.ids) - 1) // PAGE * PAGE

    def engine_flags(self) -> JsonObject:
        """The engine's flags, by SGLang's names."""
        storage = {"file_storage_path": str(self.folder), "prefetch_threshold": PAGE}
        return {
            "page_size": PAGE,
            "enable_hierarchical_cache": True,
            "hicache_io_backend": "direct",
            "hicache_mem_layout": "layer_first",
            "hicache_size": HOST_GB,
            "hicache_write_policy": "write_through",
            "hicache_storage_backend": "file",
            "hicache_storage_prefetch_policy": "wait_complete",
            "hicache_storage_backend_extra_config": json.dumps(storage),
            "admin_api_key": self.admin_key,
        }

    def warm(self, engine_url: str) -> int:
        """Let the engine read the prompt, store what was not stored, and take its storage away. Returns how many
        tokens it loaded instead of computing them: `tokens`, or fewer. Raises UserError."""
        with httpx.Client(base_url=engine_url, timeout=CALL_SECONDS, trust_env=False) as http:
            sampling = {"max_new_tokens": 1, "temperature": 0.0}
            body = {"input_ids": list(self.ids), "sampling_params": sampling}
            answer = _call(http, "POST", "/generate", json=body).json()
            self._wait_until_written()
            _call(http, "DELETE", "/hicache/storage-backend", headers=bearer(self.admin_key))
        return int(answer["meta_info"]["cached_tokens"])

    def _wait_until_written(self) -> None:
        pages, deadline = self.tokens // PAGE, time.monotonic() + WRITE_SECONDS
        while len(list(self.folder.glob("*.bin"))) < pages:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--prompt-cache-dir: the engine did not write {pages} pages to {self.folder} within "
                    f"{WRITE_SECONDS:g} s; its log says why"
                )
            time.sleep(0.02)


def prompt_cache(
    root: Path, *, model: Path, ids: Sequence[int], system: str, tools: Sequence[Json], flags: JsonMapping
) -> PromptCache:
    """The cache of this prompt under `root`. `flags` are what the engine is started with. Raises UserError."""
    config = model_config(model)
    ingredients = {
        "model": fingerprint(model),
        "weights": [_weight_file(file) for file in sorted(model.glob("*.safetensors"))],
        "vocabulary": config.get("vocab_size"),
        "layers": config.get("num_hidden_layers"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "system": system,
        "tools": list(tools),
        "ids": list(ids),
        "flags": {name: str(value) for name, value in flags.items()},
        "page": PAGE,
        "sglang": _version("sglang"),
        "torch": _version("torch"),
    }
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False)
    folder = root.resolve() / hashlib.sha256(text.encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--prompt-cache-dir: cannot make {folder}: {error.strerror}") from error
    return PromptCache(folder=folder, ids=ids)


def _weight_file(file: Path) -> list[Any]:
    """Name, size, time of change, and a digest of a part of the middle: reading all of it would take longer than the
    prompt does."""
    stat = file.stat()
    with file.open("rb") as stream:
        stream.seek(max(0, stat.st_size // 2 - SAMPLE // 2))
        part = hashlib.sha256(stream.read(SAMPLE)).hexdigest()
    return [file.name, stat.st_size, stat.st_mtime_ns, part]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _call(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    try:
        answer = http.request(method, path, **options)
    except httpx.HTTPError as error:
        raise UserError(f"--prompt-cache-dir: no answer from the engine to {method} {path}: {error}") from error
    if answer.status_code != 200:
        raise UserError(f"--prompt-cache-dir: {method} {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer
