"""OpenEnv's harness contract: its own `TrainingTrace` takes what a real session says of its turns."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.sample import Sample
from tests.environments.servers import OPENENV
from tests.session.engine import STOP, answer, bench

CHECK = """
import json, sys
from openenv.core.harness.rollout import TrainableSession
from openenv.core.harness.training import TrainingTrace

class Session:
    def wait_for_completion(self, timeout_s=None):
        return 0

    def fetch_training_trace(self):
        return TrainingTrace.model_validate_json(sys.stdin.read())

session = Session()
assert isinstance(session, TrainableSession)
trace = session.fetch_training_trace()
print(json.dumps([entry["metadata"]["node_id"] for entry in trace.to_trace_entries()]))
"""


async def told(model: Path) -> tuple[list[Sample], Any]:
    """The samples and the trace of a session: two turns, a fork of the second, and one at temperature 0."""
    replies = iter([[40, STOP], [41, 42, STOP], [43, STOP], [44, STOP]])
    async with bench(model, lambda body: answer(next(replies))) as bench_:
        session = await bench_.client.create()
        first = [{"role": "user", "content": "hi"}]
        said = (await bench_.chat(session, first))[1]["choices"][0]["message"]
        for more in ("on", "back"):
            assert (await bench_.chat(session, [*first, said, {"role": "user", "content": more}]))[0] == 200
        assert (await bench_.chat(session, [{"role": "user", "content": "greedy"}], temperature=0.0))[0] == 200
        url = f"{bench_.client.url}/sessions/{session}/training_trace"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            assert response.status == 200
            return await bench_.client.collect(session), await response.json()


async def test_its_turns_are_the_trees_own_ids_and_masks(tiny_model: Path) -> None:
    samples, trace = await told(tiny_model)
    assert trace["schema_version"] == 1
    first, second, fork, greedy = trace["turns"]
    assert [turn["completion_token_ids"] for turn in trace["turns"]] == [
        [40, STOP],
        [41, 42, STOP],
        [43, STOP],
        [44, STOP],
    ]
    assert second["prompt_token_ids"][: len(first["prompt_token_ids"]) + 2] == [*first["prompt_token_ids"], 40, STOP]
    assert second["prompt_token_ids"] + second["completion_token_ids"] == samples[0].tokens.tolist()
    for turn in (first, second, fork):
        assert turn["loss_mask"] == [0] * len(turn["prompt_token_ids"]) + [1] * len(turn["completion_token_ids"])
        assert turn["per_token_logps"] == [-0.5] * len(turn["completion_token_ids"])
    assert not any(greedy["loss_mask"])
    assert sum(map(sum, (turn["loss_mask"] for turn in trace["turns"]))) == sum(
        int(sample.loss_mask.sum()) for sample in samples
    ), "each sampled token is trained once, as in samples"
    assert [turn["metadata"]["parent"] for turn in trace["turns"]] == [None, "0", "0", None]
    assert second["request"]["messages"][-1] == {"role": "user", "content": "on"}
    assert second["response"]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.skipif(not OPENENV.exists(), reason="make setup-environments")
async def test_openenv_takes_it(tiny_model: Path) -> None:
    _, trace = await told(tiny_model)
    done = subprocess.run(
        [str(OPENENV), "-c", CHECK], input=json.dumps(trace), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["0", "1", "2", "3"]


async def test_a_session_that_nobody_opened_has_no_turns(tiny_model: Path) -> None:
    async with (
        bench(tiny_model, lambda body: answer([40, STOP])) as bench_,
        aiohttp.ClientSession() as http,
        http.get(f"{bench_.client.url}/sessions/none/training_trace") as response,
    ):
        assert await response.json() == {"schema_version": 1, "turns": []}
