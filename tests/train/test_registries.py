"""Registries beside the flags that choose from them, and beside the pages that name what they hold."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from miles_lite.config import algorithms
from miles_lite.config.algorithms import ADVANTAGES, LOSSES, Estimator, Loss
from miles_lite.config.choices import Level, Reduction
from miles_lite.config.training import Algorithm
from miles_lite.hooks import load_hook
from miles_lite.rollout.filters import FILTERS
from miles_lite.rollout.rewards import REWARDS
from miles_lite.train.advantages import load_advantage
from miles_lite.train.credit import load_tokens
from miles_lite.train.losses.objective import metric_names
from miles_lite.train.reductions import REDUCTIONS
from tests.metric_names import undocumented
from tests.rollout.helpers import make_rollout, make_sample

REPO = Path(__file__).parents[2]
ALGORITHMS = (REPO / "docs" / "algorithms.md").read_text(encoding="utf-8")
REUSED = {"arXiv:2507.18071"}
"""Papers of names that stand for a function of another."""
PAGE = (REPO / "docs" / "training.md").read_text(encoding="utf-8")


def entries() -> list[tuple[str, str, Loss | Estimator]]:
    losses = [("--loss-type", name, loss) for name, loss in LOSSES.items()]
    return [*losses, *(("--advantage-estimator", name, estimator) for name, estimator in ADVANTAGES.items())]


@pytest.mark.parametrize(("flag", "name", "entry"), entries(), ids=lambda each: each if isinstance(each, str) else "")
def test_a_name_stands_for_a_function_that_says_its_source(flag: str, name: str, entry: Loss | Estimator) -> None:
    function = load_hook(entry.path, flag=flag)
    module = inspect.getmodule(function)
    said = f"{function.__doc__} {module.__doc__ if module else ''}"
    assert re.search(r"arXiv:\d{4}\.\d{5}|\(\w+, \d{4}\)|Imitation|PPO", said), said
    if isinstance(entry, Estimator):
        assert load_tokens(entry.tokens).__doc__


def test_entries_name_flags_that_exist() -> None:
    fields = {field.name for field in dataclasses.fields(Algorithm)}
    assert {flag for _, _, entry in entries() for flag in entry.flags} <= fields


def test_one_more_is_one_line() -> None:
    """Besides its module: nothing in the package names a loss or an estimator but the line that registers it, what
    rules and defaults need, and the modules themselves."""
    source = Path(algorithms.__file__).read_text(encoding="utf-8")
    for name in ("cispo", "sapo", "dppo_tv", "gmpo", "kl_cov", "rloo", "opo", "maxrl", "gdpo"):
        assert len(re.findall(rf'^    "{name}": ', source, re.MULTILINE)) == 1
        said = [file for file in (REPO / "miles_lite").rglob("*.py") if name in words(file)]
        assert said == [Path(algorithms.__file__)]


@cache
def words(file: Path) -> set[str]:
    """Text constants of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def rows(page: str, title: str) -> dict[str, str]:
    """Of the table under a heading: its rows by the name in their first column."""
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {name: line for line in section.splitlines() for name in re.findall(r"^\| `(\w+)`", line)}


@pytest.mark.parametrize("title", ["Advantages", "Losses"])
def test_the_page_has_a_row_for_each_with_its_papers_and_flags(title: str) -> None:
    registry: Mapping[str, Loss | Estimator] = ADVANTAGES if title == "Advantages" else LOSSES
    table = rows(ALGORITHMS, title)
    assert set(table) - {"custom_loss"} == set(registry)
    for name, entry in registry.items():
        paths = [entry.path, entry.tokens] if isinstance(entry, Estimator) else [entry.path]
        cited, told = {paper for path in paths for paper in papers(source(path))}, papers(table[name])
        assert not cited or told & (cited | REUSED), f"{name}: the page cites {told}, its modules {cited}"
        flags = {f"--{flag.replace('_', '-')}" for flag in entry.flags}
        assert flags <= set(re.findall(r"--[\w-]+", table[name])), name


def test_the_page_says_which_estimators_equal_rewards_teach() -> None:
    """All others say exactly nothing of a group whose rewards are equal."""
    rollouts = [make_rollout(at, 0, make_sample(size + 2, size), reward=0.7) for at, size in enumerate((1, 2, 5, 3))]

    def teach(name: str, **flags: bool) -> bool:
        options = Algorithm(advantage_estimator=name, **flags)  # type: ignore[arg-type]
        return any(load_advantage(options.estimator.path)(rollouts, options))

    taught = {name for name in ADVANTAGES if teach(name)}
    flag = "disable_rewards_normalization"
    assert all(teach(name, **{flag: True}) for name, each in ADVANTAGES.items() if flag in each.flags)
    assert taught == {"reinforce_plus_plus", "ppo"}
    assert "but of `reinforce_plus_plus` and `ppo`, and with\n`--disable-rewards-normalization`" in ALGORITHMS


def papers(text: str) -> set[str]:
    return set(re.findall(r"arXiv:\d{4}\.\d{5}", text))


def source(path: str) -> str:
    """Of the module that an import path names."""
    return (REPO / Path(*path.partition(":")[0].split("."))).with_suffix(".py").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_each_reduction() -> None:
    assert set(rows(ALGORITHMS, "Means")) == set(Reduction)


def test_every_reduction_is_there() -> None:
    assert set(REDUCTIONS) == set(Reduction)


def test_the_page_names_every_reward_and_filter() -> None:
    assert {name for name in [*REWARDS, *FILTERS] if f"`{name}`" not in PAGE} == set()


def test_every_loss_says_the_same_of_no_tokens_as_of_some_and_its_metrics_are_documented() -> None:
    for name in LOSSES:
        sampled = name != algorithms.SFT
        options = Algorithm(
            loss_type=name, use_kl_loss=True, use_tis=sampled, use_rs=sampled, use_opsm=sampled, echo_coef=1.0
        )
        names = metric_names(options, reference=True)
        assert undocumented(f"train/{each}" for each in names) == set()


def test_a_loss_has_the_ratio_of_its_paper() -> None:
    assert {name for name, loss in LOSSES.items() if loss.level is Level.SEQUENCE} == {"gspo", "gmpo"}
    assert Algorithm(advantage_estimator="gspo").loss is LOSSES["gspo"]
    assert Algorithm(advantage_estimator="gspo", loss_type="cispo").loss is LOSSES["cispo"]
    assert Algorithm(advantage_estimator="dr_grpo").reduction is Reduction.CONSTANT
    assert Algorithm(advantage_estimator="dr_grpo", calculate_per_token_loss=True).reduction is Reduction.TOKEN
