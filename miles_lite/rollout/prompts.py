"""Prompts from JSONL, dealt out in a reproducible order that survives a restart.

Invariant: the order depends on the seed and the epoch alone; `state()` and `restore()` continue it exactly, so a
resumed run sees the prompts the stopped one had not yet taken.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miles_lite.config.rollouts import Data
from miles_lite.errors import UserError

DEEPEST = 100
"""Levels of nesting in a row: more than a prompt has, less than what carries it on the way can take."""
_SLICE = re.compile(r"^(?P<path>.*)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file. `input` is a string or a list of chat messages."""

    row: int
    input: str | list[dict[str, Any]]
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)


def load_prompts(source: str, options: Data) -> list[Prompt]:
    """Read `file.jsonl` or `file.jsonl@[start:stop]`. Raises UserError with file and line number."""
    matched = _SLICE.match(source)
    path = Path(matched["path"] if matched else source).expanduser()
    if not path.is_file():
        flaw = f"{path} is no regular file" if path.exists() else f"no such file: {path}"
        raise UserError(f"prompt data: {flaw}. Give a JSONL file, one object per line; FILE@[0:100] takes a slice.")
    lines = path.read_bytes().splitlines()
    prompts = [_parse(line, row, path, options) for row, line in enumerate(lines, start=1) if line.strip()]
    if matched:
        start, stop = (int(value) if value else None for value in (matched["start"], matched["stop"]))
        prompts = prompts[start:stop]
    if not prompts:
        raise UserError(f"prompt data: {source} holds no prompts")
    return prompts


def _parse(line: bytes, row: int, path: Path, options: Data) -> Prompt:
    where = f"{path}, line {row}"
    record = _read(line, where)
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object, found {type(record).__name__}")
    if options.input_key not in record:
        raise UserError(f"{where}: no key '{options.input_key}' (--input-key); it has {', '.join(record) or 'no keys'}")
    text = record[options.input_key]
    if not isinstance(text, str) and not (isinstance(text, list) and all(isinstance(item, dict) for item in text)):
        raise UserError(f"{where}: '{options.input_key}' must be a string or a list of chat messages")
    metadata = record.get(options.metadata_key) or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: '{options.metadata_key}' must be an object")
    if options.label_key and options.label_key not in record:
        raise UserError(f"{where}: no key '{options.label_key}' (--label-key); it has {', '.join(record)}")
    label = record[options.label_key] if options.label_key else None
    return Prompt(row=row, input=text, label=label, metadata=metadata)


def _read(line: bytes, where: str) -> object:
    """The JSON of a line of UTF-8. Raises UserError for anything else, and for what no tokenizer or file could hold."""
    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        told = "UTF-16: save it as UTF-8" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else f"byte {error.start}"
        raise UserError(f"{where}: not UTF-8 ({told}). Prompts are JSONL: one object per line, as text.") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds a lone surrogate ({error.object[error.start]!a}), which is no text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}): {text[:80]!r}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{where}: {str(error).partition(':')[0]}: write it as text") from error
    except RecursionError:
        raise UserError(f"{where}: nested deeper than {DEEPEST} levels: flatten it") from None
    if _depth(value) > DEEPEST:
        raise UserError(f"{where}: nested deeper than {DEEPEST} levels: flatten it")
    return value


def _depth(value: object) -> int:
    """How many lists and objects are inside one another."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages."""
    return [{"role": "user", "content": prompt.input}] if isinstance(prompt.input, str) else prompt.input


def check_lengths(prompts: Sequence[Prompt], count_tokens: Callable[[Prompt], int], *, limit: int, source: str) -> None:
    """Refuse prompts over `limit` tokens. Raises UserError naming the first one's line."""
    for prompt in prompts:
        length = count_tokens(prompt)
        if length > limit:
            raise UserError(
                f"{source}, line {prompt.row}: the prompt has {length} tokens, the limit is {limit} "
                "(--rollout-max-prompt-len, or the context length). Shorten it, drop it or raise the limit."
            )


class DataSource:
    """Deals prompts, one epoch after another; shuffled by (seed, epoch) when asked."""

    def __init__(self, prompts: Sequence[Prompt], options: Data) -> None:
        self._prompts = list(prompts)
        self._options = options
        self._epoch = 0
        self._offset = 0
        self._order = self._order_of(0)

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self) -> int:
        """The number of the next of `prompts`; wraps into the next epoch, however small the file."""
        if self._offset >= len(self._order):
            self._epoch += 1
            self._offset = 0
            self._order = self._order_of(self._epoch)
        number = self._order[self._offset]
        self._offset += 1
        return number

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "offset": self._offset, "prompts": len(self._prompts)}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from `state()`. Raises UserError when the prompt file has changed size."""
        if state["prompts"] != len(self._prompts):
            raise UserError(
                f"--load: the run was made with {state['prompts']} prompts, --prompt-data now has {len(self._prompts)}"
            )
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(len(self._prompts)))
        if self._options.rollout_shuffle:
            random.Random(f"{self._options.rollout_seed}-{epoch}").shuffle(order)
        return order
