"""Rollouts of a prompt beside one another: each pair is judged, in both orders (arXiv:2306.05685, section 3.4)."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence

from miles_lite.config.rewards import Rewards
from miles_lite.process.json_types import JsonMapping
from miles_lite.rollout.rewards.answer import Ask, broken
from miles_lite.rollout.rewards.final_answer import after_thinking
from miles_lite.rollout.rewards.llm_judge import as_text, query_judge, question

QUESTION = """Which of two responses answers the prompt better?

Prompt:
{prompt}

Response A:
{first}

Response B:
{second}

Reason briefly, then end with a line: Better: A, Better: B or Better: equal"""
POINTS = {"a": (1.0, 0.0), "b": (0.0, 1.0), "equal": (0.5, 0.5)}
_VERDICT = re.compile(r"(?i)better\W*\b(a|b|equal)\b")


async def pairwise_judge(
    prompt: str | Sequence[JsonMapping], responses: Sequence[str], options: Rewards, ask: Ask
) -> list[float]:
    """The share of its comparisons that each response wins, a tie counting half; 0.5 for an only one.

    Raises RolloutError for a judge that says nothing readable.
    """
    points = [0.0] * len(responses)
    room = asyncio.Semaphore(options.rm_concurrency)

    async def compare(one: int, other: int) -> None:
        told = {"prompt": as_text(prompt), "first": responses[one], "second": responses[other]}
        asked = {"role": "user", "content": question(QUESTION, told, options)}
        async with room:
            text = await query_judge([asked], options, ask)
        found = _VERDICT.findall(after_thinking(text) or text)
        if not found:
            raise broken(f"pairwise judge: no verdict in {text[-200:]!r}")
        for place, won in zip((one, other), POINTS[found[-1].lower()], strict=True):
            points[place] += won

    await asyncio.gather(*(compare(*pair) for pair in itertools.permutations(range(len(responses)), 2)))
    comparisons = 2 * (len(responses) - 1)
    return [each / comparisons for each in points] if comparisons else [0.5] * len(responses)
