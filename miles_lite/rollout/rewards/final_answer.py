"""Where the final answer is in a response, and whether it is the label."""

from __future__ import annotations

import re

from miles_lite.rollout.rewards.answer import Answer

_BRACES = re.compile(r"\\f?boxed\s*\{|[{}]")
_COMMANDS = re.compile(r"\\(?:left|right|displaystyle|,|!|;|:| )|\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """What stands in the last complete \\boxed{...} or \\fbox{...}, braces balanced; None where there is none."""
    last: tuple[int, int] | None = None
    open_: list[int | None] = []
    for found in _BRACES.finditer(text):
        if found[0] != "}":
            open_.append(None if found[0] == "{" else found.end())
        elif open_ and (start := open_.pop()) is not None and (last is None or start > last[0]):
            last = (start, found.start())
    return None if last is None else text[slice(*last)].strip()


def after_thinking(response: str) -> str | None:
    """What follows the reasoning: behind </think>, or behind "###Response"; None where neither is."""
    for mark in ("</think>", "###Response"):
        if mark in response:
            return response.rpartition(mark)[2]
    return None


def normalised(text: str) -> str:
    """An answer without what does not change it: dollars, spaces, sizes of brackets, text commands, a final stop."""
    plain = _COMMANDS.sub(lambda found: found[1] or "", text.replace("\\$", "").replace("$", ""))
    plain = plain.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("^\\circ", "").replace("\\%", "")
    return re.sub(r"\s+", "", plain).rstrip(".").replace("{,}", "").lower()


def boxed(answer: Answer) -> float:
    """1 when what is in the response's last \\boxed{} is the label, spaces and LaTeX's sizes apart."""
    found = last_boxed(answer.response)
    gold = str(answer.label)
    return float(found is not None and normalised(found) == normalised(last_boxed(gold) or gold))
