from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from miles_lite.config.choices import RewardRule
from miles_lite.config.options import parse
from miles_lite.rollout.rewards import REWARDS, load_reward
from miles_lite.rollout.rewards.answer import Answer, Pure
from miles_lite.rollout.rewards.apart import Apart
from miles_lite.sample import Rollout
from tests.processes import called

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1 --label-key l".split()


def reward(*flags: str, response: str = "the answer is 42 ", index: int = 0) -> float | None:
    config, _ = parse([*NEEDED, *flags])
    function = load_reward(config)
    assert function is not None
    rollout = Rollout(index=index, group_index=0)
    said = asyncio.run(function(config, rollout, response=response, label="42", metadata={}))
    assert not isinstance(said, Mapping)
    return said


@pytest.mark.parametrize(
    ("rule", "response", "expected"),
    [
        ("contains", "the answer is 42 ", 1.0),
        ("contains", "the answer is 41", 0.0),
        ("exact_match", " 42\n", 1.0),
        ("exact_match", "the answer is 42", 0.0),
    ],
)
def test_built_in_rules_compare_with_the_label(rule: str, response: str, expected: float) -> None:
    assert reward("--rm-type", rule, response=response) == expected


def test_random_rewards_follow_the_seed() -> None:
    first, same, other = (
        [reward("--rm-type", "random", "--rollout-seed", seed, index=index) for index in range(20)]
        for seed in ("1", "1", "2")
    )
    assert first == same != other
    assert set(first) == {0.0, 1.0}


def test_a_users_function_gives_the_reward(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("async def score(config, rollout, *, response, label, metadata):\n    return len(response) / 2\n")
    assert reward("--custom-rm-path", f"{file}:score", response="four") == 2.0


def test_without_a_flag_the_agent_gives_the_reward() -> None:
    assert load_reward(parse(NEEDED)[0]) is None


ESCAPING = """
import os, subprocess, sys, time
sleeper = "import time; time.sleep(1000)"
subprocess.Popen([sys.executable, "-c", sleeper, {mark!r}], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", sleeper, {mark!r}])
    os._exit(0)
"""


async def test_what_a_program_leaves_behind_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no bubblewrap is
    mark = f"left-{uuid.uuid4().hex}"
    judge = REWARDS[RewardRule.CODE]
    assert isinstance(judge, Pure)
    program = f"```python\n{ESCAPING.format(mark=mark)}\n```"
    apart = Apart(1)
    try:
        said = await apart.score(judge, Answer(response=program, label=["assert True"]), seconds=20)
    finally:
        apart.close()
    assert said == {"score": 1.0, "passed": 1.0}
    assert not called(mark)


def test_a_program_has_limits_on_all_that_it_could_use_up() -> None:
    """Hard ones, which it cannot lift; root alone may have more processes."""
    kinds = ("CPU", "AS", "FSIZE", "CORE", "NOFILE", "NPROC")
    test = "import resource, subprocess; assert subprocess.run(['true']).returncode == 0\n"
    test += "\n".join(
        f"assert resource.getrlimit(resource.RLIMIT_{kind})[1] != resource.RLIM_INFINITY" for kind in kinds
    )
    judge = REWARDS[RewardRule.CODE]
    assert isinstance(judge, Pure)
    said = judge.function(Answer(response="```python\npass\n```", label=test))
    assert said == {"score": 1.0, "passed": 1.0}
