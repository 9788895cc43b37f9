"""An AgentWorker in this process, against a real session server whose engine is a script."""

from __future__ import annotations

import contextlib
import logging
from itertools import chain
from pathlib import Path

import numpy as np
import orjson
import pytest

from miles_lite.config.options import parse
from miles_lite.rollout import agent_output
from miles_lite.rollout.agent_calls import Task
from miles_lite.rollout.agent_worker import AgentWorker
from miles_lite.rollout.prompts import Prompt
from miles_lite.sample import Failure, Rollout, Sample, Status
from miles_lite.traces import atraj
from tests.session.engine import STOP, answer, bench, failure

FLAGS = (
    "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1 --rm-type contains --label-key l".split()
)


async def test_a_rollouts_trajectory_holds_the_tokens_that_are_trained(tiny_model: Path, tmp_path: Path) -> None:
    config, _ = parse([*FLAGS, "--trajectory-dir", str(tmp_path)])

    async def run() -> tuple[Rollout, list[Sample], bytes]:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            prompt = Prompt(row=3, input="hello", label="zz", metadata={"k": 1})
            made = await worker.run(Task(7, 2, prompt, bench_.client.url, {"temperature": 1.0}))
            await worker.stop()
            return made

    rollout, (sample,), turns = await run()
    assert orjson.loads(turns)["turns"][0]["output_ids"] == [40, 41, STOP]
    assert rollout.status is Status.COMPLETED
    assert rollout.samples == [sample.record()]
    assert rollout.spans.reward is not None
    (path,) = tmp_path.glob("00000007-*.atraj")
    made = atraj.read(path)
    ((ids, mask, logprobs),) = made.sequences()
    assert ids.tolist() == sample.tokens.tolist()
    assert mask.tolist() == sample.loss_mask.tolist()
    assert np.allclose(logprobs, sample.logprobs)
    assert made.reward == rollout.reward == 0.0
    assert made.data["metadata"]["group_index"] == 2
    assert made.data["metadata"]["prompt"]["label"] == "zz"


async def test_an_agent_that_takes_too_long_is_cut_and_what_it_said_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    agent = tmp_path / "slow.py"
    agent.write_text(
        "import asyncio\nfrom miles_lite.environments import single_turn\n\n\n"
        "async def run(**given):\n    await single_turn.run(**given)\n    await asyncio.Event().wait()\n"
    )
    config, _ = parse([*FLAGS, "--custom-agent-function-path", f"{agent}:run", "--rollout-timeout", "2.5"])

    async def run() -> Rollout:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            prompt = Prompt(row=3, input="hello", label="zz")
            rollout, *_ = await worker.run(Task(7, 2, prompt, bench_.client.url, {"temperature": 1.0}))
            await worker.stop()
            return rollout

    rollout = await run()
    assert (rollout.status, rollout.reward) == (Status.ABORTED, None)
    assert str(rollout.failure) == "timeout: the agent function did not finish within 2 s (--rollout-timeout)"
    assert rollout.samples


@pytest.mark.parametrize("evaluation", [False, True])
async def test_a_reward_that_means_nothing_to_the_estimator_fails_its_rollout(
    evaluation: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """But for one of a held-out prompt, which nobody estimates."""
    agent = tmp_path / "loses.py"
    agent.write_text(
        "from miles_lite.environments import single_turn\n\n\n"
        "async def run(**given):\n    return await single_turn.run(**given) | {'reward': -1}\n\n\n"
        "async def judge(config, rollouts, **given):\n    return [-0.5] * len(rollouts)\n"
    )
    flags = [*FLAGS[:8], "--n-samples-per-prompt", "2", "--advantage-estimator", "maxrl"]
    config, _ = parse(
        [*flags, "--custom-agent-function-path", f"{agent}:run", "--custom-group-rm-path", f"{agent}:judge"]
    )

    async def run() -> tuple[Rollout, list[float | None] | Failure]:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            task = Task(7, 2, Prompt(row=3, input="hello"), bench_.client.url, {"temperature": 1.0}, evaluation)
            rollout, *_ = await worker.run(task)
            together = await worker.judge(task, [rollout])
            await worker.stop()
            return rollout, together

    rollout, together = await run()
    if evaluation:
        assert (rollout.reward, rollout.failure, together) == (-1.0, None, [-0.5])
    else:
        words = "reward: RolloutError: the reward is {}, and --advantage-estimator maxrl takes none below 0"
        assert (rollout.reward, str(rollout.failure)) == (None, words.format(-1))
        assert str(together) == words.format(-0.5)


BAD = """
import logging, os, sys

logging.basicConfig(stream=sys.stderr, force=True)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


async def run(*, prompt, **given):
    if prompt == "nan":
        return {"reward": float("nan")}
    if prompt == "mute":
        raise Mute
    if prompt == "logs":
        for _ in range(100):
            logging.warning("x" * 1000)
    return {"reward": 1.0}
"""


async def test_what_an_agent_gives_or_raises_fails_its_own_rollout_and_its_log_is_bounded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agent_output, "LIMIT", 10_000)
    agent = tmp_path / "bad.py"
    agent.write_text(BAD)
    config, _ = parse([*FLAGS[:-4], "--custom-agent-function-path", f"{agent}:run"])

    async def run() -> dict[str, Rollout]:
        async with bench(tiny_model, lambda body: answer([40, 41, STOP])) as bench_:
            worker = AgentWorker(0, config)
            await worker.start()
            tasks = {
                how: Task(0, 0, Prompt(row=1, input=how), bench_.client.url, {}) for how in ("nan", "mute", "logs")
            }
            rollouts = {how: (await worker.run(task))[0] for how, task in tasks.items()}
            await worker.stop()
            return rollouts

    with contextlib.ExitStack() as restored:
        root = logging.getLogger()
        restored.callback(setattr, root, "handlers", root.handlers[:])
        rollouts = await run()
    nan, mute = rollouts["nan"], rollouts["mute"]
    assert (nan.status, nan.reward) == (Status.FAILED, None)
    assert str(nan.failure).startswith("reward: ValueError: the reward is nan: it must be a finite number")
    assert mute.status is Status.FAILED
    assert str(mute.failure) == "agent: Mute: its message cannot be printed"
    assert 5_000 < capsys.readouterr().err.count("x" * 1000) * 1000 <= 10_000


SWALLOWS = """
from miles_lite.environments import single_turn


async def run(*, prompt, **given):
    try:
        await single_turn.run(prompt=prompt, **given)
    except RuntimeError:
        if prompt == "raises":
            raise
    if prompt == "goes on":
        await single_turn.run(prompt=prompt, **given)
    return {"reward": 0.0}
"""


async def test_a_rollout_whose_engine_failed_has_no_reward_whatever_its_agent_made_of_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    agent = tmp_path / "swallows.py"
    agent.write_text(SWALLOWS)
    config, _ = parse([*FLAGS[:-4], "--custom-agent-function-path", f"{agent}:run"])
    engine = chain((failure(501, "out of memory") for _ in range(3)), [answer([40, 41, STOP])])

    async with bench(tiny_model, lambda body: next(engine)) as bench_:
        worker = AgentWorker(0, config)
        await worker.start()
        tasks = [
            Task(0, 0, Prompt(row=1, input=how), bench_.client.url, {}) for how in ("raises", "returns", "goes on")
        ]
        rollouts = [(await worker.run(task))[0] for task in tasks]
        await worker.stop()
        raised, returned, went_on = rollouts
    assert (raised.status, raised.reward) == (returned.status, returned.reward) == (Status.FAILED, None)
    assert str(raised.failure) == str(returned.failure) == "engine: the engine failed with 501: out of memory"
    assert (went_on.status, went_on.reward, went_on.failure) == (Status.COMPLETED, 0.0, None)
