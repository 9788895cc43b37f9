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
    files = sorted(Path(folder).glob("*.py"))
    for name in _architectures():
        module = next((file.stem for file in files if f"\nclass {name}(" in file.read_text(encoding="utf-8")), None)
        if module is not None:
            yield getattr(importlib.import_module(f"{MODELS}.{module}"), name)


EntryClass = list(_classes())
