"""Chat transcripts to token ids, built as rollouts build them.

Invariant: a transcript's tokens are those a session would hold had the model sampled every assistant turn: the prompt
is one rendered text, each assistant turn is encoded by itself and closed by the end-of-turn token (both trained), and
what the template puts between two assistant turns is one rendered text again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.sample import Sample
from miles_lite.train.examples import example


def read_conversations(path: Path | str, *, given_as: str) -> Iterator[tuple[int, list[JsonObject]]]:
    """The number and messages of each line `{"messages": [...]}` of the file that a flag names; blank ones are left
    out. Raises UserError with the line number."""
    with user_error(f"{given_as}: cannot read {path}", OSError):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f'{given_as}: {path}, line {number}: expected {{"messages": [...]}}, got {line[:80]!r}'
        with user_error(where, json.JSONDecodeError, KeyError, TypeError):
            messages = json.loads(line)["messages"]
        yield number, messages


def read_transcripts(path: Path | str) -> list[list[JsonObject]]:
    """The messages of each line of --warm-start. Raises UserError with the line number."""
    transcripts = []
    for number, messages in read_conversations(path, given_as="--warm-start"):
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError(f"{path}, line {number}: no assistant message, so nothing to learn")
        transcripts.append(messages)
    if not transcripts:
        raise UserError(f"{path} holds no transcripts")
    return transcripts


def encode_transcript(tokenizer: Any, messages: Sequence[JsonMapping]) -> Sample:
    """A sample whose loss mask is 1 on assistant turns and their end-of-turn tokens, up to the last of them.

    Raises UserError when the chat template changes earlier text as messages are appended.
    """
    end = tokenizer.eos_token
    ids: list[int] = []
    mask: list[int] = []

    def extend(text: str, *, trained: bool) -> None:
        new = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(new)
        mask.extend([int(trained)] * len(new))

    def render(count: int, *, prompt: bool) -> str:
        rendered = tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, add_generation_prompt=prompt)
        return str(rendered)

    done = ""
    for index in (index for index, message in enumerate(messages) if message["role"] == "assistant"):
        before, after = render(index, prompt=True), render(index + 1, prompt=False)
        turn, closed, rest = after.removeprefix(before).partition(end)
        if not (before.startswith(done) and after.startswith(before) and closed):
            raise UserError(f"message {index}: the chat template does not append; such a model cannot be warm-started")
        extend(before[len(done) :], trained=False)
        extend(turn, trained=True)
        extend(end, trained=True)
        done = after[: len(after) - len(rest)]
    return example(np.asarray(ids, np.int32), np.asarray(mask, np.uint8))
