"""Reads what a run must know of a model folder before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miles_lite.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")


def check_model_folder(folder: str, *, given_as: str = "--hf-checkpoint") -> Path:
    """The folder, when it holds a config, weights and a tokenizer. Raises UserError saying what is missing."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(
            f"{given_as} {folder}: no such folder. Give a Hugging Face model folder, or make a small one with "
            "`miles-lite init-model`."
        )
    if not (path / "config.json").is_file():
        raise UserError(f"{given_as} {folder}: has no config.json, so it is not a Hugging Face model folder")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise UserError(f"{given_as} {folder}: has no weights (*.safetensors)")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{given_as} {folder}: has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}). Copy the tokenizer "
            "files of the model next to its config.json."
        )
    return path


def context_length(folder: Path, limit: int | None) -> int:
    """Tokens a sequence may have: `limit`, or what the model's config.json says. Raises UserError when neither does."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    positions = config.get("max_position_embeddings")
    if limit is None and positions is None:
        raise UserError(f"{folder}/config.json has no max_position_embeddings: give --rollout-max-context-len")
    return min(value for value in (limit, positions) if value is not None)


def import_transformers() -> Any:
    """The `transformers` module, importable also beside a torchvision that was built for another torch.

    transformers imports torchvision wherever it is installed. A CUDA build of it next to a CPU torch fails for want of
    two operators that no language model calls; declaring them is enough.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return transformers
    except RuntimeError:
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return transformers
