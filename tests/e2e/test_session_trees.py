"""Sessions that branch, from real agents and SGLang, train as trees: what branches share is computed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.rollout import dump
from miles_lite.sample import Rollout
from tests.e2e.job import EXAMPLE, Prepared, assert_nothing_left, run, values

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("agent", ["subagents", "retrying"])
def test_branches_train_as_trees_as_they_train_apart(
    agent: str, prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    """The halves of the loop, each alone: what the first wrote is trained twice by the second."""
    pattern = str(tmp_path / "saved" / "{rollout_id}.pt")
    own = ["--custom-agent-function-path", f"{EXAMPLE / agent}.py:run", "--num-rollout", "1", "--clip-grad", "0"]
    own += ["--tito-allowed-append-roles", "tool", "user", "assistant"]
    own += ["--num-steps-per-rollout", "1", "--entropy-coef", "0.05"]
    own += ["--n-samples-per-prompt", "12", "--rollout-temperature", "1.3"]  # few tries fail of a model so well trained
    flags = prepared.flags(run_dir, *own, "--debug-rollout-only", "--save-debug-rollout-data", pattern)
    run("train", flags, mark=mark, log=tmp_path / "log", timeout=500)
    assert_nothing_left(mark)
    assert not values(run_dir, "train/loss")
    branching = [
        rollout
        for group in dump.read(dump.path_of(pattern, 0))
        for rollout in group.rollouts
        if len(rollout.samples) > 1
    ]
    assert branching, "no session branched"
    if agent == "retrying":
        assert any(shared_turns(rollout) for rollout in branching), "no branches share a turn"
    metrics = {}
    for name, more in (("trees", []), ("apart", ["--disable-tree-training"])):
        folder = tmp_path / name
        alone = prepared.flags(
            folder, *own, "--load-debug-rollout-data", pattern, "--none-reward-policy", "zero", *more
        )
        run("train", alone, mark=mark, log=tmp_path / f"log-{name}", timeout=500)
        wanted = ("train/loss", "train/grad_norm", "train/logprob_gap/numerics", "perf/tree_savings_ratio")
        metrics[name] = {each: values(folder, each)[0] for each in wanted}
    assert_nothing_left(mark)
    print(metrics)
    trees, apart = metrics["trees"], metrics["apart"]
    assert trees["train/grad_norm"] > 0
    assert trees["perf/tree_savings_ratio"] > 0.3
    assert apart["perf/tree_savings_ratio"] == 0
    assert trees["train/loss"] == pytest.approx(apart["train/loss"], abs=1e-6)
    assert trees["train/grad_norm"] == pytest.approx(apart["train/grad_norm"], rel=1e-5)
    assert max(trees["train/logprob_gap/numerics"], apart["train/logprob_gap/numerics"]) < 1e-5


def shared_turns(rollout: Rollout) -> bool:
    """Whether samples have a prefix in common in which something was sampled."""
    known: set[int] = set()
    for sample in rollout.samples:
        digests = {prefix.digest for prefix in sample.prefixes if prefix.length > sample.prompt_length}
        if digests & known:
            return True
        known |= digests
    return False
