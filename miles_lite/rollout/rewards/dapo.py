"""DAPO's rule for mathematics (arXiv:2503.14476, section 3.3): 1 for a right answer, -1 for another."""

from __future__ import annotations

import re

from miles_lite.rollout.rewards.answer import Answer
from miles_lite.rollout.rewards.final_answer import last_boxed, normalised

TAIL = 300
"""Characters at the end of a response in which the answer stands."""
_ANSWER = re.compile(r"(?i)answer\s*:\s*([^\n]+)")
_UNITS = re.compile(
    r"(?i)(?<=[\d})])(?:square|units?|degrees?|percent|dollars?|cents?|inches|feet|meters?|cm|hours?)+$"
)


def dapo(answer: Answer) -> dict[str, float | str]:
    """`score` 1 or -1, `acc` 1 or 0, and `pred`, what was found behind the last "Answer:" or in the last \\boxed{}."""
    tail = answer.response[-TAIL:]
    lines = _ANSWER.findall(tail)
    found = (lines[-1] if lines else None) or last_boxed(tail) or ""
    found = last_boxed(found) or found
    gold = str(answer.label)
    right = bool(found) and _plain(found) == _plain(last_boxed(gold) or gold)
    return {"score": 1.0 if right else -1.0, "acc": float(right), "pred": found.strip()}


def _plain(text: str) -> str:
    """An answer without its left side, units, and the commas of thousands."""
    plain = _UNITS.sub("", normalised(text.rpartition("=")[2]))
    return plain.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", plain) else plain
