"""Reads tokenizer, chat template and stop tokens from a model folder.

Invariant: neither torch nor transformers is imported unless the folder has no tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from miles_lite.errors import UserError
from miles_lite.model_folder import read_json
from miles_lite.process.json_types import Json, JsonObject

_VOCABULARIES = ("*.model", "*.tiktoken", "vocab.*")
"""What older checkpoints hold instead of tokenizer.json; without one transformers would make up an empty tokenizer."""


@dataclass(frozen=True, slots=True)
class ModelText:
    """What a model folder says about text: `variables` are the names templates may print, such as bos_token."""

    tokenizer: Tokenizer
    template: str | None
    variables: dict[str, str]
    stop_ids: frozenset[int]
    model_type: str | None


def load_model_text(folder: str | Path) -> ModelText:
    """Raises UserError when the folder has no tokenizer. `template` is None when it has no chat template."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"model folder {path} does not exist: give a Hugging Face model folder")
    config = read_json(path / "tokenizer_config.json")
    tokenizer = _tokenizer(path)
    template = _template(path, config)
    variables = {name: _token_text(config[name]) for name in config if name.endswith("_token") and config[name]}
    stops = _stop_ids(path, tokenizer, variables.get("eos_token"))
    return ModelText(tokenizer, template or None, variables, stops, read_json(path / "config.json").get("model_type"))


def read_template(path: str | Path, *, flag: str) -> str:
    """A chat template's text. Raises UserError."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{flag} {path}: cannot be read: {reason}") from error


def no_template(path: str | Path) -> UserError:
    return UserError(
        f"model folder {path} has no chat template: add chat_template.jinja, or a chat_template entry in "
        "tokenizer_config.json (base models have none; use the instruct model's), or give the model's Python encoder "
        "as --tito-model module:function"
    )


def _tokenizer(path: Path) -> Tokenizer:
    if (path / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(path / "tokenizer.json"))
    if not any(found for pattern in _VOCABULARIES for found in path.glob(pattern)):
        raise UserError(f"model folder {path} has no tokenizer: copy tokenizer.json and tokenizer_config.json there")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model folder {path} has no usable tokenizer ({reason}): copy tokenizer.json and "
            "tokenizer_config.json there"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(f"the tokenizer in {path} has no fast version: save one as tokenizer.json with transformers")
    return backend


def _template(path: Path, config: JsonObject) -> str:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or next(iter(named.values()), "")
    return str(template)


def _stop_ids(path: Path, tokenizer: Tokenizer, eos: str | None) -> frozenset[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ids = read_json(path / name).get("eos_token_id")
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if eos is not None and (index := tokenizer.token_to_id(eos)) is not None:
        found.add(index)
    return frozenset(found)


def _token_text(token: Json) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
