"""Weights as Hugging Face folders that engines load.

Invariant: a folder that exists is complete: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`, and only then remove the folder that stood there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def version_of(folder: Path) -> int:
    """Of a folder vN."""
    return int(folder.name[1:])


def remove_before(folder: Path, *, keep: int) -> None:
    """Remove the versions beside `folder` but for the last `keep` up to it. Later ones are an earlier run's."""
    versions = sorted(folder.parent.glob("v*"), key=version_of)
    for old in versions[: versions.index(folder) + 1][:-keep]:
        shutil.rmtree(old)


def copy_tokenizer(source: Path, folder: Path, *, template: str | None = None) -> None:
    """Copy every file of a model folder that is no weight and is not in `folder` yet: tokenizer, template, code.

    The file `template` takes the place of the model's chat template.
    """
    if template is not None:
        shutil.copy2(template, folder / "chat_template.jinja")
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES) and not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name)
