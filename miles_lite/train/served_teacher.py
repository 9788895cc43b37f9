"""Teachers of on-policy distillation that somebody else serves: logprobs of samples' tokens from an SGLang server.

Invariant: what a server says is of the very ids that it was asked about, at temperature 1, which is the rollouts' then
(`config.algorithm_rules.distillation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np

from miles_lite.errors import UserError, user_error
from miles_lite.sample import Sample

REQUESTS = 16
"""Samples that a server is asked about at once."""
SECONDS = 300.0


@dataclass(frozen=True)
class ServedTeacher:
    """An SGLang server."""

    url: str

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Of each sample's tokens, float32 [T]; 0 for the first. Raises UserError naming the server."""
        client = httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)
        with client, ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(lambda sample: self._ask(client, sample), samples))

    def _ask(self, client: httpx.Client, sample: Sample) -> np.ndarray:
        body = {
            "input_ids": sample.tokens.tolist(),
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        with user_error(f"--opd-teacher {self.url}: no logprobs", httpx.HTTPError, KeyError, TypeError, ValueError):
            reply = client.post("/generate", json=body)
            reply.raise_for_status()
            told = reply.json()["meta_info"]["input_token_logprobs"]
            ids = np.array([each[1] for each in told])
            logprobs = np.array([each[0] or 0.0 for each in told], np.float32)
        if not np.array_equal(ids, sample.tokens):
            raise UserError(f"--opd-teacher {self.url}: it answers for other ids than it was asked about")
        return logprobs
