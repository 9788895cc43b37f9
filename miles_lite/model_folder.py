"""Reads what a run must know of a model folder before anything is started, and what tells one folder from another.

Invariant: reads only; a folder that is no model's is a UserError that says what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
"""What a tokenizer is made of, whichever of its kinds it is."""


def check_model_folder(folder: str, *, given_as: str = "--hf-checkpoint") -> Path:
    """The folder, when it holds a config, weights and a tokenizer. Raises UserError saying what is missing."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(
            f"{given_as} {folder}: no such folder. Give a Hugging Face model folder, or make a small one with "
            "`miles-lite init-model`."
        )
    model_config(path, given_as=given_as)
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise UserError(f"{given_as} {folder}: has no weights (*.safetensors)")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{given_as} {folder}: has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}). Copy the tokenizer "
            "files of the model next to its config.json."
        )
    return path


def model_config(folder: str | Path, *, given_as: str = "--hf-checkpoint") -> JsonObject:
    """What config.json says. Raises UserError."""
    file = Path(folder, "config.json")
    if not file.is_file():
        raise UserError(f"{given_as} {folder}: has no config.json, so it is not a Hugging Face model folder")
    return read_json(file)


def text_config(folder: str | Path) -> JsonObject:
    """That of the model that reads text, where it is one of several. Raises UserError."""
    config = model_config(folder)
    found: JsonObject = config.get("text_config", config)
    return found


def read_json(file: Path) -> JsonObject:
    """The object in a file; empty where there is no such file, or something else in it. Raises UserError: no JSON."""
    if not file.is_file():
        return {}
    with user_error(f"{file} is not valid JSON", ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def token_ids(folder: Path) -> dict[str, int]:
    """The id of each token of its tokenizer.json, added ones included; {} without such a file. Raises UserError."""
    told = read_json(folder / "tokenizer.json")
    pieces = told.get("model", {}).get("vocab", {})
    named = dict(pieces) if isinstance(pieces, dict) else {piece: at for at, (piece, _) in enumerate(pieces)}
    return named | {added["content"]: added["id"] for added in told.get("added_tokens", ())}


def foreign_id(ids: np.ndarray, vocabulary: int) -> str | None:
    """The first of ids [T] that is none of so many, and where, in words; None where all are."""
    strange = np.flatnonzero((ids < 0) | (ids >= vocabulary))
    if not len(strange):
        return None
    return f"token {strange[0]} has the id {ids[strange[0]]}, and the model has {vocabulary} ids, from 0 on"


def context_length(folder: Path, limit: int | None) -> int:
    """Tokens a sequence may have: `limit`, or what the model's config.json says. Raises UserError when neither does."""
    positions = text_config(folder).get("max_position_embeddings")
    if limit is None and positions is None:
        raise UserError(f"{folder}/config.json has no max_position_embeddings: give --rollout-max-context-len")
    return min(value for value in (limit, positions) if value is not None)


def fingerprint(model: Path | str, *, template: str | None = None) -> dict[str, str]:
    """SHA-256 of what makes a model folder's text and tokens: `model` is over config.json and the names and sizes of
    the weight files, `tokenizer` and `template` over the files themselves. `template` is a file in the place of the
    folder's."""
    folder = Path(model)
    printed = (folder, TEMPLATE_FILES) if template is None else (Path(template).parent, (Path(template).name,))
    weights = sorted(folder.glob("*.safetensors"))
    sizes = "".join(f"\n{file.name} {file.stat().st_size}" for file in weights)
    return {
        "name": folder.name,
        "model": _digest(folder, ("config.json",), sizes.encode()),
        "tokenizer": _digest(folder, _TEXT_FILES),
        "template": _digest(*printed),
    }


def _digest(folder: Path, names: Sequence[str], more: bytes = b"") -> str:
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    digest.update(more)
    return digest.hexdigest()
