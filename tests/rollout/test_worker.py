"""An AgentWorker in this process, against a real session server whose engine is a script."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from miles_lite import atraj
from miles_lite.config import parse
from miles_lite.rollout.data import Prompt
from miles_lite.rollout.worker import AgentWorker, Task
from miles_lite.sample import Rollout, Status
from tests.session.engine import STOP, answer, bench

FLAGS = (
    "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1 --rm-type contains --label-key l".split()
)


def test_a_rollouts_trajectory_holds_the_tokens_that_are_trained(tiny_model: Path, tmp_path: Path) -> None:
    config, _ = parse([*FLAGS, "--trajectory-dir", str(tmp_path)])

    async def run() -> Rollout:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            prompt = Prompt(row=3, input="hello", label="zz", metadata={"k": 1})
            rollout = await worker.run(Task(7, 2, prompt, bench_.client.url, {"temperature": 1.0}))
            await worker.stop()
            return rollout

    rollout = asyncio.run(run())
    assert rollout.status is Status.COMPLETED
    (path,) = tmp_path.glob("00000007-*.atraj")
    made = atraj.read(path)
    ((ids, mask, logprobs),) = made.sequences()
    (sample,) = rollout.samples
    assert ids.tolist() == sample.tokens.tolist()
    assert mask.tolist() == sample.loss_mask.tolist()
    assert np.allclose(logprobs, sample.logprobs)
    assert made.reward == rollout.reward == 0.0
    assert made.data["metadata"]["group_index"] == 2
    assert made.data["metadata"]["prompt"]["label"] == "zz"


def test_an_agent_that_takes_too_long_is_cut_and_what_it_said_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    agent = tmp_path / "slow.py"
    agent.write_text(
        "import asyncio\nfrom miles_lite.rollout import single_turn\n\n\n"
        "async def run(**given):\n    await single_turn.run(**given)\n    await asyncio.Event().wait()\n"
    )
    config, _ = parse([*FLAGS, "--custom-agent-function-path", f"{agent}:run", "--rollout-timeout", "1.5"])

    async def run() -> Rollout:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            prompt = Prompt(row=3, input="hello", label="zz")
            rollout = await worker.run(Task(7, 2, prompt, bench_.client.url, {"temperature": 1.0}))
            await worker.stop()
            return rollout

    rollout = asyncio.run(run())
    assert (rollout.status, rollout.error, rollout.reward) == (Status.ABORTED, "timeout", None)
    assert "--rollout-timeout" in rollout.metadata["error_detail"]
    assert rollout.samples
