"""A language model as the judge (arXiv:2306.05685): of our own engines, or behind --rm-url.

Invariant: what the judge says is never trained: it speaks through a session of its own, which nobody collects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from miles_lite.config.rewards import Rewards
from miles_lite.process.json_types import JsonMapping
from miles_lite.rollout.rewards.answer import Answer, Ask, broken
from miles_lite.rollout.rewards.final_answer import after_thinking
from miles_lite.rollout.rewards.remote_rm import posted

QUESTION = """Rate how well the response answers the prompt, from 0 (not at all) to 10 (perfectly).

Prompt:
{prompt}

Reference answer:
{label}

Response:
{response}

Reason briefly, then end with a line: Score: <0 to 10>"""
BEST = 10.0
_SCORE = re.compile(r"(?i)(?:score|rating)\W*?(-?\d+(?:\.\d+)?)")
_OF_BEST = re.compile(r"(?i)\s*(?:/|(?:out )?of)\s*10\b")
_NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)(?![\w.]*\d)")


async def llm_judge(answer: Answer, options: Rewards, /) -> float:
    """The judge's score, 0 to 1. Raises RolloutError for a judge that gives none."""
    label = "none" if answer.label is None else str(answer.label)
    told = {"prompt": as_text(answer.prompt), "response": answer.response, "label": label}
    messages = [{"role": "user", "content": question(QUESTION, told, options)}]
    return score_in(await query_judge(messages, options, answer.ask))


async def query_judge(messages: list[dict[str, Any]], options: Rewards, ask: Ask | None) -> str:
    """What the judge answers: the server at --rm-url, else our engines. Raises RolloutError."""
    if options.rm_url is not None:
        body = {"model": "judge", "messages": messages, "temperature": 0}
        url = options.rm_url.rstrip("/") + "/chat/completions"
        said: Any = await posted(url, body, options)
        try:
            return str(said["choices"][0]["message"]["content"] or "")
        except (LookupError, TypeError) as error:
            raise broken(f"{url}: answered {said!r:.200}, which is no chat completion") from error
    assert ask is not None
    return await ask(messages)


def as_text(prompt: str | Sequence[JsonMapping]) -> str:
    """A prompt as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{each.get('role')}: {each.get('content')}" for each in prompt)


def question(own: str, told: Mapping[str, str], options: Rewards) -> str:
    """What a judge is asked: `own`, or what --rm-judge-prompt asks, with what is `told` in its places."""
    asked = own if options.rm_judge_prompt is None else _read(options.rm_judge_prompt)
    return re.sub(rf"\{{({'|'.join(told)})\}}", lambda found: told[found[1]], asked)


def score_in(text: str) -> float:
    """The last score in an answer, behind its reasoning, divided by 10. Raises RolloutError."""
    last = _OF_BEST.sub("", after_thinking(text) or text)
    found = _SCORE.findall(last) or _NUMBER.findall(last)
    if not found or not 0 <= float(found[-1]) <= BEST:
        raise broken(f"llm_judge: no score from 0 to {BEST:g} in {text[-200:]!r}")
    return float(found[-1]) / BEST


@cache
def _read(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")
