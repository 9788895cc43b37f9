"""Rewards that compare texts."""

from __future__ import annotations

import random

from miles_lite.rollout.rewards.answer import Answer


def exact_match(answer: Answer) -> float:
    """1 when the response, stripped, equals the label."""
    return float(answer.response.strip() == str(answer.label).strip())


def contains(answer: Answer) -> float:
    """1 when the label occurs in the response. Raises ValueError for an empty label, which occurs in each."""
    if not str(answer.label):
        raise ValueError("the row's label is empty, and every response contains it")
    return float(str(answer.label) in answer.response)


def random_reward(answer: Answer) -> float:
    """A coin, seeded by the run and the rollout: for dry runs of a pipeline."""
    return float(random.Random(f"{answer.seed}-{answer.index}").random() < 0.5)
