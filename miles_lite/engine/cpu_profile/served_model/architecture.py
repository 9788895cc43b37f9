"""`EntryClass`: SGLang's own classes for the architectures that the config.json of --model-path names; empty where it
has none."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

MODELS = "sglang.srt.models"


def _architectures() -> list[str]:
    path = sys.argv[sys.argv.index("--model-path") + 1]
    return json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("architectures") or []


def _classes() -> Iterator[type]:
    spec = importlib.util.find_spec(MODELS)
    (folder,) = (spec and spec.submodule_search_locations) or [""]
    sources = {file.stem: file.read_text(encoding="utf-8") for file in sorted(Path(folder).glob("*.py"))}
    for name in _architectures():
        module = next((stem for stem, source in sources.items() if f"\nclass {name}(" in source), None)
        if module is not None:
            yield getattr(importlib.import_module(f"{MODELS}.{module}"), name)


EntryClass = list(_classes())
