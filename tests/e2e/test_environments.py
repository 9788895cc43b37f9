"""Environments, trained in on real engines and ranks: a tiny model that plays at random learns to play.

The model is warm-started on episodes that a player draws at random, through the environment itself: it knows how to
speak, and no more.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments import load
from miles_lite.environments.episodes import TextLoop, ToolLoop
from miles_lite.environments.session_chat import Message
from miles_lite.init_model.build import init_model
from miles_lite.init_model.warm_start import warm_start
from tests.e2e.job import assert_nothing_left, run, values
from tests.environments.servers import OPENENV, serving

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

Draw = random.Random
EPISODES = 512


@dataclass(frozen=True)
class Case:
    """`spec` with a server's URL for `{url}`; `act`: what the player says, or calls a tool with, knowing nothing;
    `split`: whose tasks it plays; `makes`: what writes the tasks into the folder of the URL's place."""

    spec: str
    needs: str
    act: Callable[[Draw], str]
    args: dict[str, Any] = field(default_factory=dict)
    server: str | None = None
    steps: int = 60
    flags: tuple[str, ...] = ()
    split: str = "warm-start"
    makes: Callable[[Path], None] | None = None

    @contextmanager
    def named(self, folder: Path) -> Iterator[str]:
        if self.makes is not None:
            self.makes(folder / "tasks")
        where = nullcontext(str(folder / "tasks"))
        with serving(self.server, folder / "server.log", top=4) if self.server else where as url:
            yield self.spec.format(url=url)


ANIMALS = ("cat", "fox", "owl")
WORDS = (*ANIMALS, "tree", "stone", "river", "cloud", "house", "door", "lamp", "sand", "rain", "road", "hill", "leaf")
TOOLS = ("--sglang-tool-call-parser", "qwen25")


def write_tasks(folder: Path) -> None:
    """Of a terminal, in Harbor's format: to write a word of a kind into a file."""
    for number, word in enumerate(("animal", "beast", "living thing", "creature")):
        task = folder / str(number)
        (task / "tests").mkdir(parents=True)
        (task / "task.toml").write_text("")
        (task / "instruction.md").write_text(f"Write the name of a {word} into said.")
        test = f"grep -qxE '{'|'.join(ANIMALS)}' said\necho $((! $?)) > /logs/verifier/reward.txt\n"
        (task / "tests" / "test.sh").write_text(test)


DIVISORS = {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 12, "answer": "text"}
CASES = {
    "reasoning-gym": Case("reasoning-gym:gcd", "reasoning_gym", lambda draw: str(draw.randint(1, 12)), DIVISORS),
    "gem": Case(
        "gem:game:GuessTheNumber-v0-easy",
        "gem",
        lambda draw: f"\\boxed{{{draw.randint(1, 40)}}}",
        steps=24,
    ),
    "openenv": Case("openenv:{url}", str(OPENENV), lambda draw: str(draw.randint(1, 20)), {}, "openenv", 24),
    "ors": Case(
        "ors:{url}/guessing",
        "ors",
        lambda draw: json.dumps({"number": draw.randint(1, 20)}),
        {},
        "ors",
        24,
        TOOLS,
        split="test",
    ),
    "harbor": Case(
        "harbor:{url}",
        shutil.which("bwrap") or "bwrap",
        lambda draw: json.dumps({"command": f"echo {draw.choice(WORDS)} > said"}),
        {"sandbox": "bwrap", "max_turns": 1},
        steps=24,
        flags=(*TOOLS, "--rollout-batch-size", "4"),
        split="train",
        makes=write_tasks,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewards_double(name: str, tmp_path: Path, mark: str) -> None:
    case = CASES[name]
    if not Path(case.needs).exists() and importlib.util.find_spec(case.needs.replace("/", "_")) is None:
        pytest.skip("make setup-environments")
    with case.named(tmp_path) as spec:
        rewards = learn(case, spec, tmp_path, mark)
    print(f"{name}: {[round(reward, 3) for reward in rewards]}")
    first, last = sum(rewards[:2]) / 2, sum(rewards[-5:]) / 5
    assert last >= max(2 * first, first + 0.1)


def learn(case: Case, spec: str, folder: Path, mark: str) -> list[float]:
    """The mean reward of each step."""
    args = json.dumps(case.args)
    episodes = asyncio.run(drawn(case, spec, args))
    (folder / "episodes.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in episodes))
    corpus = [str(message["content"]) for each in episodes for message in each]
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 128, "vocab_size": 512, "context": 768}
    init_model(folder / "model", corpus=corpus, **sizes)
    warm_start(folder / "model", folder / "episodes.jsonl", steps=60, batch=16, lr=5e-3, seed=0, threads=2)
    flags = ["--hf-checkpoint", str(folder / "model"), "--environment", spec, "--environment-args", args]
    flags += ["--run-dir", str(folder / "run"), "--device", "cpu", "--colocate", "--rollout-num-gpus", "1"]
    flags += ["--rollout-batch-size", "8", "--n-samples-per-prompt", "16", "--num-rollout", str(case.steps)]
    flags += ["--rollout-max-response-len", "40", "--lr", "1e-3", "--adam-beta2", "0.98", "--weight-decay", "0"]
    flags += ["--num-steps-per-rollout", "2", "--use-dynamic-batch-size", "--max-tokens-per-gpu", "8192"]
    flags += ["--lr-warmup-iters", "8", "--rollout-max-context-len", "768", *case.flags]
    run("train", flags, mark=mark, log=folder / "log", timeout=1200)
    assert_nothing_left(mark)
    return values(folder / "run", "rollout/raw_reward")


async def drawn(case: Case, spec: str, args: str) -> list[list[Message]]:
    """Episodes of a player that draws."""
    made, draw = load(spec, args, seed=1), Draw(0)
    prompts = made.rows(case.split)
    found = []
    for at in range(EPISODES):
        row = prompts[at % len(prompts)]
        if isinstance(made, TextLoop):
            found.append(await spoken(made, row["metadata"], lambda: case.act(draw)))
        elif isinstance(made, ToolLoop):
            found.append(await called(made, row["metadata"], lambda: case.act(draw)))
        else:
            said = {"role": "assistant", "content": case.act(draw)}
            found.append([{"role": "user", "content": row["prompt"]}, said])
    return found


async def spoken(loop: TextLoop, metadata: dict[str, Any], act: Callable[[], str]) -> list[Message]:
    episode = loop.begin(loop.tasks.of(metadata))
    messages = list((await episode.begin()).messages)
    while True:
        said = act()
        step = await episode.step(said)
        messages.append({"role": "assistant", "content": said})
        if step.done:
            await episode.close()
            return messages
        messages.append({"role": "user", "content": step.observation})


async def called(loop: ToolLoop, metadata: dict[str, Any], act: Callable[[], str]) -> list[Message]:
    """As the template prints the tools that a session is given."""
    episode = loop.begin(loop.tasks.of(metadata))
    begun = await episode.begin()
    (tool,) = begun.tools or []
    offered = 'Call a tool with <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>. Tools:\n'
    messages: list[Message] = [{"role": "system", "content": offered + json.dumps(tool)}, *begun.messages]
    for turn in range(loop.max_turns):
        said = act()
        step = await episode.call(tool["function"]["name"], json.loads(said))
        call = f'<tool_call>\n{{"name": "{tool["function"]["name"]}", "arguments": {said}}}\n</tool_call>'
        messages.append({"role": "assistant", "content": call})
        if step.done or turn == loop.max_turns - 1:
            break
        messages.append({"role": "user", "content": f"<tool_response>\n{step.observation}\n</tool_response>"})
    await episode.close()
    return messages
