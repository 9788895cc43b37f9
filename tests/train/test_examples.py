from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from miles_lite.train.examples import Examples


def config(path: Path, *flags: str) -> Config:
    given = ["--hf-checkpoint", "m", "--prompt-data", str(path), "--loss-type", "sft_loss", *flags]
    return parse(given if "--num-rollout" in flags else [*given, "--num-epoch", "1"])[0]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(token: int) -> dict[str, Any]:
    return {"input_ids": [1, 2, token], "loss_mask": [0, 1, 1]}


@settings(deadline=None)
@given(rows=st.integers(1, 9), size=st.integers(1, 4), shuffle=st.booleans())
def test_every_row_is_taken_once_per_epoch(
    rows: int, size: int, shuffle: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("e") / "rows.jsonl", [row(10 + number) for number in range(rows)])
    flags = ["--rollout-batch-size", str(size), *(["--rollout-shuffle"] if shuffle else [])]
    options = config(path, *flags)
    taken = []
    for step in range(rows):  # `size` epochs
        rollouts = Examples(options, context=8, vocabulary=64).rollouts(step)
        assert all(rollout.reward is None for rollout in rollouts)
        taken += [int(sample.tokens[-1]) for rollout in rollouts for sample in rollout.fetch()]
    assert sorted(taken) == sorted([10 + number for number in range(rows)] * size)
    assert Examples(options, context=8, vocabulary=64).steps == -(-rows // size)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"messages": []}, "line 2: needs input_ids"),
        ({"input_ids": [1], "loss_mask": [1, 0]}, "line 2: .* of one length"),
        ({"input_ids": [1, 2], "loss_mask": [0, 3]}, "line 2: .* of one length"),
        ({"input_ids": [1] * 9, "loss_mask": [1] * 9}, "line 2: 9 tokens, but the model's context is 8"),
        ({"input_ids": [1, 64], "loss_mask": [0, 1]}, "line 2: token 1 has the id 64, and the model has 64 ids"),
        ({"input_ids": [-1, 3], "loss_mask": [0, 1]}, "line 2: token 0 has the id -1"),
    ],
)
def test_a_row_that_cannot_be_trained_is_named(bad: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Examples(config(write(tmp_path / "rows", [row(3), bad]), "--rollout-batch-size", "1"), context=8, vocabulary=64)


def test_a_file_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    nothing = write(tmp_path / "rows", [{"input_ids": [1], "loss_mask": [0]}])
    with pytest.raises(UserError, match="no row with a trained token"):
        Examples(config(nothing, "--rollout-batch-size", "1"), context=8, vocabulary=64)
