from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miles_lite.model_folder import fingerprint
from miles_lite.traces import atraj
from tests.session.engine import STOP, answer, bench


async def _talk(model: Path) -> None:
    replies = iter([[40, 41, STOP], [50, STOP], [60, 61, STOP]])
    async with bench(model, lambda body: answer(next(replies))) as bench_:
        session = await bench_.client.create({"temperature": 1.0, "max_new_tokens": 8})
        messages: list[dict[str, Any]] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        _, first = await bench_.chat(session, messages)
        messages += [first["choices"][0]["message"], {"role": "user", "content": "more"}]
        await bench_.chat(session, messages)
        await bench_.chat(session, [*messages[:-1], {"role": "user", "content": "other"}])
        turns = await bench_.client.turns(session)
        samples = await bench_.client.collect(session)
    made = atraj.build(turns, reward=0.5, task="t")
    assert atraj.parse(made.data) is not None
    assert made.data["leaves"] == [1, 2]
    assert made.data["model"] == fingerprint(model)
    roles = [(step.role, step.sampled) for step in made.paths()[1]]
    assert roles == [("system", False), ("user", False), ("assistant", True), ("user", False), ("assistant", True)]
    for (ids, mask, logprobs), sample in zip(made.sequences(), samples, strict=True):
        assert ids.tolist() == sample.tokens.tolist()
        assert mask.tolist() == sample.loss_mask.tolist()
        assert np.allclose(logprobs, sample.logprobs)


async def test_turns_build_the_trajectory_of_the_same_tokens_that_are_trained(tiny_model: Path) -> None:

    await _talk(tiny_model)
