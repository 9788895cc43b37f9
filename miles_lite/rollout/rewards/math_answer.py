"""Mathematical answers, compared as mathematics by math-verify (Kydlíček, 2025).

Its own time-outs are off: they need a main thread; here the process that waits has one.
"""

from __future__ import annotations

from miles_lite.rollout.rewards.answer import Answer
from miles_lite.rollout.rewards.final_answer import after_thinking, last_boxed, normalised


def math(answer: Answer) -> float:
    """1 when the response's final answer, boxed or its last expression, equals the label's."""
    return float(equal(str(answer.label), answer.response))


def deepscaler(answer: Answer) -> float:
    """1 when what is boxed behind the reasoning equals the label, or one of several (DeepScaleR, 2025).

    0 for a response that does not end its reasoning, or boxes nothing.
    """
    found = last_boxed(after_thinking(answer.response) or "")
    labels = answer.label if isinstance(answer.label, list) else [answer.label]
    return float(found is not None and any(equal(str(label), f"\\boxed{{{found}}}") for label in labels))


def equal(gold: str, response: str) -> bool:
    """Whether the answer in `response` is the one that `gold` is, or boxes."""
    from math_verify import parse, verify

    wanted = last_boxed(gold) or gold
    if (found := last_boxed(response)) is not None and normalised(found) == normalised(wanted):
        return True
    golds = parse(f"\\boxed{{{wanted}}}", parsing_timeout=None) or parse(wanted, parsing_timeout=None)
    return bool(verify(golds, parse(response, parsing_timeout=None), timeout_seconds=None))
