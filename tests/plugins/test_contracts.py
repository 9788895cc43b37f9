"""Functions in miles' signatures, called as miles calls them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from miles_lite.config.options import parse
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.hooks import check_hooks, load_hook
from miles_lite.plugins import field_args
from miles_lite.plugins.contracts import CONTRACTS
from miles_lite.plugins.field_sample import Sample, to_own
from miles_lite.rollout.filters import load_filter, verdict
from miles_lite.rollout.judging import Judging
from miles_lite.rollout.prompts import Prompt
from miles_lite.sample import Group, Keep, Rollout, Status
from miles_lite.train.advantages import estimate
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.streams import Streams
from tests.rollout.helpers import make_rollout, make_sample
from tests.train.helpers import make_streams

FILE = Path(__file__).with_name("written_for_miles.py")
NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1 --label-key l".split()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """No stand-ins stay behind."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("miles", "slime")]:
        del sys.modules[name]
    vars(field_args.current()).clear()


def theirs(name: str, flag: str) -> Any:
    return load_hook(f"{FILE}:{name}", flag=flag)


def group(*rewards: float) -> Group:
    rollouts = [
        make_rollout(at, 0, make_sample(5, 3), reward=reward, status=Status.COMPLETED)
        for at, reward in enumerate(rewards)
    ]
    return Group(index=0, prompt={"row": 1, "label": "zz"}, rollouts=rollouts)


async def test_a_reward_sees_the_row_and_the_text() -> None:
    config, _ = parse([*NEEDED, "--custom-rm-path", f"{FILE}:reward_func"])
    judge = theirs("reward_func", "--custom-rm-path")
    rollout = Rollout(index=0, group_index=0)
    said = await judge(config, rollout, response="eight ch", label="zz", metadata={}, prompt="p", evaluation=False)
    assert said == {"score": 1.0, "acc": 1.0}


async def test_a_filter_sees_samples_with_tokens_that_are_fetched_when_asked_for() -> None:
    judge = load_filter(f"{FILE}:keep_some")
    assert await verdict(group(1.0, 0.0), judge) == Keep(True, "negative")
    assert await verdict(group(-1.0, -2.0), judge) == Keep(False, "negative")


def test_processed_rewards_take_the_place_of_those_that_were_earned() -> None:
    options = Algorithm(custom_reward_post_process_path=f"{FILE}:post_process")
    groups = [group(1.0, 3.0), group(5.0)]
    rollouts, advantages = estimate(groups, options)
    assert advantages == [-2.0, 0.0, 2.0]
    assert [rollout.reward for rollout in rollouts] == [1.0, 3.0, 5.0]


def test_a_post_process_of_the_wrong_length_is_named(tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text("def run(groups, options, /):\n    return [1.0]\n")
    with pytest.raises(UserError, match="1 rewards, for 2 rollouts"):
        estimate([group(1.0, 3.0)], Algorithm(custom_reward_post_process_path=f"{file}:run"))


def test_importance_weights_are_those_of_each_sequence() -> None:
    weigh = theirs("truncated_importance", "--custom-tis-function-path")
    old = torch.tensor([-1.0, -2.0, -1.0, -1.0])
    sampled, sequences = torch.tensor([-1.0, -4.0, -1.5, -1.0]), Sequences(torch.tensor([1, 0, 1, 1]), 2)
    streams = make_streams(old, rollout_logprobs=sampled, sequences=sequences)
    weights, metrics = weigh(streams, Algorithm(tis_clip=1.2))
    assert weights.tolist() == pytest.approx([1.0, 0.0, 1.2, 1.0])
    assert set(metrics) == {"tis"}
    assert weigh(Streams.empty(reference=False), Algorithm())[0].shape == (0,)


def test_a_sample_is_checked_before_it_is_trained() -> None:
    sample = Sample(prompt="p", label=1, status=Sample.Status.COMPLETED)
    assert (sample.tokens, sample.response_length, sample.loss_mask) == ([], 0, None)
    sample.tokens, sample.response_length = [1, 2, 3], 2
    with pytest.raises(ValueError, match="left rollout_log_probs out"):
        to_own(sample, temperature=1.0, version=3)
    sample.rollout_log_probs = [-0.5]
    with pytest.raises(ValueError, match="3 tokens, response_length 2, 2 in loss_mask and 1 in rollout_log_probs"):
        to_own(sample, temperature=1.0, version=3)
    sample.rollout_log_probs, sample.loss_mask = [-0.5, -0.25], [1, 0]
    own = to_own(sample, temperature=0.5, version=3)
    assert own.loss_mask.tolist() == [0, 1, 0]
    assert own.logprobs.tolist() == [0, -0.5, 0]
    assert own.weight_versions.tolist() == [-1, 3, -1]
    with pytest.raises(AttributeError, match="has no 'colour'"):
        _ = sample.colour


@pytest.mark.parametrize("made", ["None", "[]", "sample.prompt", "[sample, None]"])
async def test_what_is_no_sample_is_named(tmp_path: Path, made: str) -> None:
    (tmp_path / "theirs.py").write_text(f"async def act(args, sample, sampling_params):\n    return {made}\n")
    act = load_hook(f"{tmp_path / 'theirs.py'}:act", flag="--custom-generate-function-path")
    asked: dict[str, Any] = {"base_url": "", "api_key": "", "request_kwargs": {}, "metadata": {}, "label": None}
    with pytest.raises(TypeError, match=r"act returned .*: expected a sample, or a list of them"):
        await act(prompt="p", router_url="http://127.0.0.1:1", **asked)


def test_hooks_are_checked_before_the_run_in_either_signature(tmp_path: Path) -> None:
    functions = ("reward_func", "group_reward", "keep_some", "post_process", "truncated_importance", "generate")
    names = dict(zip(CONTRACTS, functions, strict=False))
    check_hooks({flag: f"{FILE}:{name}" for flag, name in names.items()})
    (tmp_path / "plain.py").write_text("def reward(args, sample):\n    return 1.0\n")
    with pytest.raises(UserError, match=r"--custom-rm-path .*plain.py:reward: is not async: write `async def`"):
        check_hooks({"--custom-rm-path": f"{tmp_path / 'plain.py'}:reward"})


WRONG = {
    "--custom-rm-path": ("async def run(args): ...", r"with \(args, sample\): too many positional"),
    "--custom-group-rm-path": ("async def run(args, samples, more): ...", "missing a required argument: 'more'"),
    "--dynamic-sampling-filter-path": ("def run(args): ...", r"with \(args, samples\): too many positional"),
    "--custom-reward-post-process-path": ("async def run(args, samples): ...", "this one is not awaited"),
    "--custom-tis-function-path": ("def run(args, weights): ...", "missing a required argument: 'weights'"),
    "--custom-generate-function-path": ("async def run(args, sample): ...", "too many positional"),
    "--rollout-function-path": (
        "def run(args, rollout_id, data_source): ...",
        "unexpected keyword argument 'evaluation'",
    ),
    "--eval-function-path": ("class run:\n    def __init__(self, given): ...", "have no __call__"),
}


@pytest.mark.parametrize("flag", CONTRACTS)
def test_what_cannot_be_called_as_theirs_is_refused(tmp_path: Path, flag: str) -> None:
    source, message = WRONG[flag]
    (tmp_path / "wrong.py").write_text(f"{source}\n")
    with pytest.raises(UserError, match=f"^{flag} .*wrong.py:run: .*{message}"):
        load_hook(f"{tmp_path / 'wrong.py'}:run", flag=flag)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def __init__(self): ...\n    def __call__(self, input): ...", r"with \(input\): too many positional"),
        ("def __init__(self, input): ...\n    def __call__(self): ...", r"__call__: .* with \(<self>, input\)"),
    ],
)
def test_a_class_is_made_and_its_object_called_with_one(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "wrong.py").write_text(f"class Rollouts:\n    {body}\n")
    with pytest.raises(UserError, match=message):
        load_hook(f"{tmp_path / 'wrong.py'}:Rollouts", flag="--rollout-function-path")


def test_importance_is_called_as_it_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text("def run(args, pg_loss, **more):\n    raise KeyError(' '.join(['args', 'pg_loss', *more]))\n")
    with pytest.raises(KeyError) as told:
        load_hook(f"{file}:run", flag="--custom-tis-function-path")(make_streams(torch.zeros(1)), Algorithm())
    assert told.value.args[0].split() == [*CONTRACTS["--custom-tis-function-path"].call.keywords]


def test_other_modules_of_miles_are_not_invented() -> None:
    theirs("reward_func", "--custom-rm-path")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("miles.backends.megatron_utils")


def test_args_are_the_options_under_their_flags_names() -> None:
    config, _ = parse([*NEEDED, "--rollout-stop", "a", "b"])
    args = field_args.args_of(config, mine=3)
    assert (args.rollout_batch_size, args.hf_checkpoint[-1], args.rollout_stop, args.mine) == (1, "m", ["a", "b"], 3)


async def test_rewards_of_a_group_are_given_together() -> None:
    flags = ["--custom-rm-path", f"{FILE}:group_reward", "--group-rm"]
    config, _ = parse([*NEEDED, *flags])
    assert (config.rewards.custom_rm_path, config.rewards.judges_groups) == (None, True)
    rollouts = [Rollout(index=at, group_index=0, metadata={"response": "x" * at}) for at in (2, 1, 2)]
    judging = Judging(config, None)
    prompt = Prompt(row=1, input="p")
    assert await judging.group(rollouts, prompt, ask=nobody) == [1.0, 0.0, 1.0]
    assert await judging.reward(rollouts[0], prompt, evaluation=False, ask=nobody) is None
    judging.close()
    with pytest.raises(UserError, match="--group-rm needs --custom-rm-path, or --rm-type llm_judge"):
        parse([*NEEDED, "--group-rm", "--rm-type", "math"])


async def nobody(messages: list[dict[str, Any]]) -> str:
    raise AssertionError("nobody is asked")
