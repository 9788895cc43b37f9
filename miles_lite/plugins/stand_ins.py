"""Modules under miles' names, for plug-ins that import them, where miles itself is not installed.

Invariant: what is installed goes first; only what plug-ins' contracts need is here (`MODULES`), and another import of
`miles` fails as it would without.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import aiohttp

from miles_lite.plugins import field_args
from miles_lite.plugins.field_sample import Sample

SECONDS = 600.0
ATTEMPTS = 5


@dataclass
class DynamicFilterOutput:
    """What a filter says."""

    keep: bool
    reason: str | None = None


async def post(url: str, payload: Any, max_retries: int = ATTEMPTS, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON that a POST is answered with; asked again after no answer and 5xx."""
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as client:
        for left in reversed(range(max(1, max_retries))):
            try:
                async with client.post(url, json=payload) as reply:
                    if reply.status < 500 or not left:
                        reply.raise_for_status()
                        return await reply.json(content_type=None)
            except aiohttp.ClientConnectionError:
                if not left:
                    raise
    raise AssertionError("unreachable")


async def get(url: str) -> Any:
    """The JSON at a URL."""
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as reply:
        reply.raise_for_status()
        return await reply.json(content_type=None)


class GenerateState:
    """What generate functions share: options, and the tokenizer of --hf-checkpoint."""

    _only: GenerateState | None = None

    def __new__(cls, args: Any = None) -> GenerateState:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __init__(self, args: Any = None) -> None:
        self.args = args or field_args.current()
        self.aborted = False
        if not hasattr(self, "tokenizer"):
            self.tokenizer = load_tokenizer(self.args.hf_checkpoint)
            self.processor = None


def load_tokenizer(name_or_path: str, **_: Any) -> Any:
    """Hugging Face's, from a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name_or_path)


MODULES: Mapping[str, Mapping[str, object]] = {
    "utils.types": {"Sample": Sample},
    "utils.http_utils": {"post": post, "get": get},
    "utils.async_utils": {},
    "utils.processing_utils": {"load_tokenizer": load_tokenizer},
    "rollout.sglang_rollout": {"GenerateState": GenerateState},
    "rollout.filter_hub.base_types": {"DynamicFilterOutput": DynamicFilterOutput},
}
"""By the module's name within `miles`, and `slime`, its ancestor."""


def install() -> None:
    """Put the modules of packages that are not installed where imports find them. Idempotent."""
    for package in ("miles", "slime"):
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        for name, content in MODULES.items():
            parts = [package, *name.split(".")]
            for end in range(1, len(parts) + 1):
                path = ".".join(parts[:end])
                module = sys.modules.setdefault(path, ModuleType(path, "A stand-in: miles is not installed."))
                module.__path__ = []
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
            vars(sys.modules[".".join(parts)]).update(content)
