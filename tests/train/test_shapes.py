"""What a model cannot be cut into is said from its config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_lite.config.parallel import Parallelism
from miles_lite.errors import UserError
from miles_lite.train.shapes import check_shapes
from miles_lite.weights.compat import import_transformers
from tests.train.families import make_config

SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48, "vocab_size": 288}


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"num_key_value_heads": 2}, {"tensor_model_parallel_size": 4}, "size 4 does not divide num_key_value_heads 2"),
        ({"vocab_size": 289}, {"tensor_model_parallel_size": 2}, "does not divide vocab_size 289"),
        ({}, {"expert_model_parallel_size": 2}, "tells of no experts"),
        ({"num_experts": 6}, {"expert_model_parallel_size": 4}, "size 4 does not divide the 6 experts"),
    ],
)
def test_what_does_not_divide_is_named(
    tmp_path: Path, changes: dict[str, int], sizes: dict[str, int], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | changes))
    with pytest.raises(UserError, match=message):
        check_shapes(tmp_path, Parallelism(**sizes))  # type: ignore[arg-type]


def test_ranks_share_no_rows_of_what_cannot_be_packed(tmp_path: Path) -> None:
    make_config("gpt_oss").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--context-parallel-size 2: .* cannot be packed: its att"):
        check_shapes(tmp_path, Parallelism(context_parallel_size=2))


def test_a_model_without_a_plan_is_told_apart(tmp_path: Path) -> None:
    import_transformers().OPTConfig(num_attention_heads=12).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--tensor-model-parallel-size 2: transformers has no plan to cut a opt so"):
        check_shapes(tmp_path, Parallelism(tensor_model_parallel_size=2))


def test_what_divides_passes(tmp_path: Path) -> None:
    make_config("qwen3_moe").save_pretrained(tmp_path)
    check_shapes(tmp_path, Parallelism(tensor_model_parallel_size=2, expert_model_parallel_size=8))
    check_shapes(tmp_path, Parallelism())
