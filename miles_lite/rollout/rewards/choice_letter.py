"""Multiple choice, as GPQA has it (arXiv:2311.12022)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from miles_lite.rollout.rewards.answer import Answer
from miles_lite.rollout.rewards.final_answer import after_thinking, last_boxed, normalised

_SAID = (
    re.compile(r"(?i)answer\s*+(?:is|:|=)?+\s*+\**+\s*+\(?+\s*+([A-Z])\b"),
    re.compile(r"(?i)(?:option|choice)\s*+\(?+\s*+([A-Z])\b"),
    re.compile(r"(?m)^[^\S\n]*+\**+\(?+([A-Z])\)?[.:]?\**+[^\S\n]*+$"),
)
"""None goes back over what it has read: a response may be 100,000 spaces."""


def gpqa(answer: Answer) -> float:
    """1 when the letter that the response ends with is the label's.

    The label is a letter, a number from 0, or the text of one of `choices` in the metadata; `correct_letter` there
    takes its place.
    """
    choices = answer.metadata.get("choices")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) if isinstance(choices, list) else 10]
    gold = _letter_of(answer.metadata.get("correct_letter", answer.label), choices, letters)
    return float(gold is not None and gold == chosen(answer.response, choices, letters))


def chosen(response: str, choices: object, letters: str) -> str | None:
    """The letter in a response: boxed, said to be the answer, alone on a line, or that of a choice it repeats."""
    text = after_thinking(response) or response
    if (found := last_boxed(text)) is not None:
        return _letter_of(found.strip("() ."), choices, letters)
    for pattern in _SAID:
        said = [str(each).upper() for each in pattern.findall(text) if str(each).upper() in letters]
        if said:
            return said[-1]
    return _letter_of(text.strip(), choices, letters)


def _letter_of(value: object, choices: object, letters: str) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    text = str(value).strip()
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        texts = [normalised(str(choice)) for choice in choices]
        return letters[texts.index(normalised(text))] if normalised(text) in texts else None
    return None
