"""Held-out datasets with settings of their own: miles' --eval-config.

    eval:
      defaults: {n_samples_per_eval_prompt: 4}
      datasets:
        - {name: aime, path: aime.jsonl, rm_type: math, temperature: 0.6}

Invariant: a dataset's own setting counts over the defaults', these over --eval- flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from miles_lite.config.environments import is_source
from miles_lite.config.folders import absolute
from miles_lite.config.spelling import nearest
from miles_lite.config.yaml_text import read_yaml
from miles_lite.errors import UserError, user_error

SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_response_len": "max_new_tokens",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "min_new_tokens": "min_new_tokens",
}
"""Settings of how a dataset is sampled, under the engine's names."""
DATA = ("input_key", "label_key", "tool_key", "metadata_key")
OTHERS = ("name", "path", "rm_type", "n_samples_per_eval_prompt", "metadata_overrides")


@cache
def read_eval_config(file: str) -> Mapping[str, Mapping[str, Any]]:
    """The settings of each dataset by its name, its path absolute. Raises UserError."""
    with user_error(f"--eval-config {file}: cannot be read", OSError, UnicodeDecodeError, yaml.YAMLError):
        content = read_yaml(Path(file).read_text(encoding="utf-8"))
    told = content.get("eval", content) if isinstance(content, dict) else None
    datasets = told.get("datasets") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(datasets, list) or not datasets:
        raise UserError(f"--eval-config {file}: expected eval: {{defaults: ..., datasets: [{{name, path, ...}}]}}")
    found: dict[str, Mapping[str, Any]] = {}
    for number, each in enumerate(datasets, 1):
        settings = {**(told.get("defaults") or {}), **each} if isinstance(each, dict) else {}
        if not isinstance(settings.get("name"), str) or not isinstance(settings.get("path"), str):
            raise UserError(f"--eval-config {file}, dataset {number}: needs a name and a path")
        known = (*SAMPLING, *DATA, *OTHERS)
        for key in settings:
            if key not in known:
                raise UserError(f"--eval-config {file}, {settings['name']}: unknown key {key}{nearest(key, known)}")
        if settings["name"] in found:
            raise UserError(f"--eval-config {file}: {settings['name']} is there twice")
        found[settings["name"]] = settings | {"path": path if is_source(path := settings["path"]) else absolute(path)}
    return found


def metadata_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset's rows have in their metadata besides their own."""
    rule = {"rm_type": settings["rm_type"]} if settings.get("rm_type") else {}
    return {**(settings.get("metadata_overrides") or {}), **rule}
