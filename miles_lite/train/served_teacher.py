"""Teachers of on-policy distillation that somebody else serves: logprobs of samples' tokens from an SGLang server.

Invariant: what a server says is of the very ids that it was asked about, at temperature 1, which is the rollouts' then
(`config.algorithm_rules.distillation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from miles_lite.errors import UserError, user_error
from miles_lite.sample import Sample
from miles_lite.train.examples import example

REQUESTS = 16
"""Samples that a server is asked about at once."""
SECONDS = 300.0
PROBE_SECONDS = 20.0
"""How long one that is idle may take over two tokens."""


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher says of a sample.

    logprobs      float32 [T] of its tokens; 0 of the first
    top_ids       int64 [T, K] the tokens that are likeliest in the place of each, the likeliest first; top_logprobs:
                  float32, of these
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    @classmethod
    def nothing(cls, tokens: int, likeliest: int) -> TeacherScores:
        """Of tokens that no server is asked about."""
        zeros = np.zeros((tokens, likeliest), np.float32)
        return cls(np.zeros(tokens, np.float32), zeros.astype(np.int64), zeros)


@dataclass(frozen=True)
class ServedTeacher:
    """An SGLang server. `likeliest`: tokens that it is to name in the place of each."""

    url: str
    likeliest: int = 0

    def logprobs(self, samples: Sequence[Sample]) -> list[TeacherScores]:
        """What it says of each sample. Raises UserError naming the server."""
        client = httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)
        with client, ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(lambda sample: self._ask(client, sample), samples))

    def check(self) -> None:
        """Ask it about two tokens. Raises UserError for one that is not there, or does not say what is needed."""
        two = example(np.array([0, 1], np.int32), np.array([0, 1], np.uint8))
        with httpx.Client(base_url=self.url, timeout=PROBE_SECONDS, trust_env=False) as client:
            self._ask(client, two)

    def _ask(self, client: httpx.Client, sample: Sample) -> TeacherScores:
        body = {
            "input_ids": sample.tokens.tolist(),
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": self.likeliest,
        }
        with user_error(f"--opd-teacher {self.url}: no logprobs", httpx.HTTPError, KeyError, TypeError, ValueError):
            reply = client.post("/generate", json=body)
            reply.raise_for_status()
            told = reply.json()["meta_info"]
            ids, logprobs = _columns([told["input_token_logprobs"]])
            tops = told["input_top_logprobs"][1:] if self.likeliest else [[]] * (len(sample) - 1)
            top_ids, top_logprobs = _columns([[[0.0, 0]] * self.likeliest, *tops])
        if not np.array_equal(ids[0], sample.tokens):
            raise UserError(f"--opd-teacher {self.url}: it answers for other ids than it was asked about")
        return TeacherScores(logprobs[0], top_ids, top_logprobs)


def _columns(rows: Sequence[Sequence[Sequence[Any]]]) -> tuple[np.ndarray, np.ndarray]:
    """Of rows of [logprob, id, ...]: ids, int64, and logprobs, float32, 0 where there is none."""
    ids = np.array([[each[1] for each in row] for row in rows], np.int64)
    return ids, np.array([[each[0] or 0.0 for each in row] for row in rows], np.float32)
