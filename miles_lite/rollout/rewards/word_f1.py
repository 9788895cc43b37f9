"""The F1 of words, as SQuAD has it (arXiv:1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter

from miles_lite.rollout.rewards.answer import Answer
from miles_lite.rollout.rewards.final_answer import after_thinking

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def f1(answer: Answer) -> float:
    """The harmonic mean of precision and recall of words, best of the labels where there are several.

    Case, punctuation and articles do not count. Two texts without words are equal.
    """
    words = _words(after_thinking(answer.response) or answer.response)
    labels = answer.label if isinstance(answer.label, list) else [answer.label]
    return max((_f1(words, _words(str(label))) for label in labels), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))
