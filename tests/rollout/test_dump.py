"""Rollouts that one run saves and another trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miles_lite.errors import UserError, Where
from miles_lite.rollout import dump
from miles_lite.sample import Failure, Group, Rollout, Sample, Status
from tests.rollout.helpers import make_rollout, make_sample

IDS = 1000
ELSEWHERE = {"stored"}
"""Where its samples lie."""


def step() -> list[Group]:
    """Two groups: a rollout of two samples, one whose experts are known, one that failed, one that has no reward."""
    experts = np.arange(11 * 2 * 2, dtype=np.uint16).reshape(11, 2, 2)
    routed = dataclasses.replace(make_sample(12, 4), routed_experts=experts, status=Status.TRUNCATED)
    marked = dataclasses.replace(make_sample(9, 3), metadata={"merged_offcontext": [[6, 8]], "leaf": 1})
    first = Group(7, {"row": 3, "label": "a"})
    first.rollouts = [
        make_rollout(28, 7, make_sample(8, 2), marked, reward=1.0, status=Status.COMPLETED),
        make_rollout(29, 7, routed, reward=0.25, status=Status.TRUNCATED, metadata={"turns": 2}),
    ]
    first.rollouts[1].teacher = "math"
    first.rollouts[1].spans.tool, first.rollouts[1].started_at, first.rollouts[1].ended_version = 2.5, 17.0, 3
    second = Group(8, {"row": 4})
    second.rollouts = [
        Rollout(30, 8, status=Status.ABORTED, failure=Failure(Where.TIMEOUT, "600 s"), metadata={"turns": 3}),
        make_rollout(31, 8, make_sample(5, 1)),
    ]
    return [first, second]


def assert_same(one: Sample, other: Sample) -> None:
    for field in dataclasses.fields(Sample):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    groups = step()
    path = dump.path_of(f"{tmp_path}/made/{{rollout_id}}.pt", 5)
    dump.write(path, 5, groups)
    read = dump.read(path, vocabulary=IDS)
    assert [(group.index, group.prompt, group.rewards) for group in read] == [
        (group.index, group.prompt, group.rewards) for group in groups
    ]
    for one, other in zip(
        (rollout for group in groups for rollout in group.rollouts),
        (rollout for group in read for rollout in group.rollouts),
        strict=True,
    ):
        for field in dataclasses.fields(Rollout):
            if field.name not in ELSEWHERE:
                assert getattr(one, field.name) == getattr(other, field.name), field.name
        assert one.trainable == other.trainable
        for left, right in zip(one.fetch(), other.fetch(), strict=True):
            assert_same(left, right)
    assert [each.name for each in path.parent.iterdir()] == ["5.pt"]


class Odd:
    def __str__(self) -> str:
        raise RuntimeError


def test_whatever_an_agent_and_a_prompt_say_is_read_again(tmp_path: Path) -> None:
    said: dict[Any, Any] = {"score": np.float32(0.5), "each": np.arange(2), "when": Decimal("1.5"), 3: {"a"}}
    said |= {"how": lambda: None, "odd": Odd(), "status": Status.FAILED, "nested": [{"wide": np.longdouble(1)}]}
    group = Group(0, {"row": 1, "label": np.int64(4)}, [make_rollout(0, 0, make_sample(4, 2), reward=np.float64(1))])
    group.rollouts[0].metadata = said
    dump.write(tmp_path / "0.pt", 0, [group])
    (read,) = dump.read(tmp_path / "0.pt")
    told = read.rollouts[0].metadata
    assert "lambda" in told.pop("how")
    assert "Odd" in told.pop("odd")
    plain = {"score": 0.5, "each": [0, 1], "when": "1.5", "status": "failed", 3: ["a"], "nested": [{"wide": "1.0"}]}
    assert told == plain
    assert (read.prompt["label"], read.rollouts[0].reward) == (4, 1.0)


def test_the_fields_names_are_in_the_file(tmp_path: Path) -> None:
    dump.write(tmp_path / "0.pt", 0, step())
    whole = torch.load(tmp_path / "0.pt", weights_only=True)
    assert whole["rollout_id"] == 0
    assert len(whole["samples"]) == 4
    known = {"group_index", "index", "prompt", "tokens", "response_length", "reward", "loss_mask", "weight_versions"}
    assert known | {"rollout_log_probs", "rollout_routed_experts", "status", "metadata"} <= whole["samples"][0].keys()
    assert whole["samples"][0]["response_length"] == 2


def test_a_file_that_is_missing_or_another_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*3\.pt"):
        dump.read(tmp_path / "3.pt", vocabulary=IDS)
    torch.save({"rollout_id": 1}, tmp_path / "4.pt")
    with pytest.raises(UserError, match=r"4\.pt: not as --save-debug-rollout-data"):
        dump.read(tmp_path / "4.pt", vocabulary=IDS)


def _without_tokens(whole: dict[str, Any]) -> None:
    del whole["samples"][0]["tokens"]


def _misaligned(whole: dict[str, Any]) -> None:
    whole["samples"][0]["loss_mask"] = whole["samples"][0]["loss_mask"][:-1]


def _without_rollouts(whole: dict[str, Any]) -> None:
    del whole["metadata"]["rollouts"]


def _foreign_id(whole: dict[str, Any]) -> None:
    whole["samples"][1]["tokens"][4] = IDS


def _negative_id(whole: dict[str, Any]) -> None:
    whole["samples"][0]["tokens"][0] = -1


def _unknown_status(whole: dict[str, Any]) -> None:
    whole["metadata"]["rollouts"][0]["rollout_status"] = "well"


def _no_number(whole: dict[str, Any]) -> None:
    whole["metadata"]["rollouts"][0]["reward"] = float("nan")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_without_tokens, "'tokens'"),
        (_misaligned, "rollout 28, sample 0: loss_mask is"),
        (_without_rollouts, "'rollouts'"),
        (_unknown_status, "well"),
        (_no_number, "rollout 28 has the reward nan"),
        (_foreign_id, "rollout 28, sample 1: token 4 has the id 1000, and the model has 1000 ids"),
        (_negative_id, "rollout 28, sample 0: token 0 has the id -1"),
    ],
)
def test_a_damaged_file_is_one_message_that_names_it(
    harm: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "0.pt"
    dump.write(path, 0, step())
    whole = torch.load(path, weights_only=True)
    harm(whole)
    torch.save(whole, path)
    with pytest.raises(UserError, match=rf"0\.pt: not as .*{message}"):
        dump.read(path, vocabulary=IDS)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 and no more"])
def test_bytes_that_are_no_dump_are_one_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "0.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.pt: not as --save-debug-rollout-data"):
        dump.read(tmp_path / "0.pt", vocabulary=IDS)
