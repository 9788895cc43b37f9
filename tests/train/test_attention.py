"""The attention function of packed rows: equal to separate sequences, and plain about what it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from miles_lite.train.attention import Segments, implementation, lower_right, segment_attention, unpackable
from miles_lite.train.layout import Layout
from tests.train.families import make_config, make_model

BRANCHES = Layout((4, 3, 6), (4, 3, 6), ((0,), (0, 1), (0, 2)))
CPU = torch.device("cpu")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("window", [None, 3, 9])
def test_a_branch_attends_as_its_whole_sequence_does(window: int | None) -> None:
    query, key, value = random(1, 4, 13, 8), random(1, 2, 13, 8), random(1, 2, 13, 8)
    module, segments = nn.Module(), Segments(BRANCHES, CPU)
    got, _ = segment_attention(module, query, key, value, scaling=0.3, sliding_window=window, segments=segments)
    for branch in (range(4, 7), range(7, 13)):
        path = [*range(4), *branch]
        alone = [each[:, :, path] for each in (query, key, value)]
        expected, _ = segment_attention(module, *alone, scaling=0.3, sliding_window=window)
        torch.testing.assert_close(got[:, branch.start : branch.stop], expected[:, 4:], atol=1e-6, rtol=1e-5)


def test_the_varlen_form_names_the_same_keys() -> None:
    where, queries, keys, most_queries, most_keys = Segments(BRANCHES, CPU).varlen
    assert where is not None
    assert where.tolist() == [*range(4), *range(4), *range(4, 7), *range(4), *range(7, 13)]
    assert (queries.tolist(), keys.tolist()) == ([0, 4, 7, 13], [0, 4, 11, 21])
    assert (most_queries, most_keys) == (6, 10)


def test_a_window_is_of_the_last_keys() -> None:
    assert lower_right(2, 4, 2, device=CPU).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


REFUSED: dict[str, dict[str, object]] = {
    "sinks": {"s_aux": torch.zeros(4)},
    "soft cap": {"softcap": 30.0},
    "dropout": {"dropout": 0.1},
    "mask": {"attention_mask": torch.zeros(1)},
    "bidirectional": {"is_causal": False, "module": type("Encoder", (nn.Module,), {"is_causal": False})()},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_is_refused_by_name(what: str) -> None:
    asked = {"module": nn.Module(), "query": random(1, 4, 2, 8), "key": random(1, 4, 2, 8), "value": random(1, 4, 2, 8)}
    attention: Callable[..., object] = segment_attention
    with pytest.raises(NotImplementedError, match=what):
        attention(**(asked | REFUSED[what]))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "llama", "gemma3"])
def test_models_of_full_and_sliding_attention_can_be_packed(family: str) -> None:
    assert unpackable(make_config(family)) is None
    assert implementation(make_config(family)) == "segments"


WHOLE_ROWS = [
    ("qwen3_next", {}, "linear_attention", "sdpa"),
    ("gpt_oss", {}, "sinks", "eager"),
    ("gemma2", {}, "caps attention scores", "eager"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic", "sdpa"),
]


@pytest.mark.parametrize(("family", "changes", "reason", "attention"), WHOLE_ROWS)
def test_other_models_are_recognised_and_get_attention_of_their_own(
    family: str, changes: dict[str, object], reason: str, attention: str
) -> None:
    config = make_config(family, **changes)
    assert reason in (unpackable(config) or "")
    assert implementation(config) == attention


def test_a_model_is_the_same_by_itself() -> None:
    ids = torch.arange(12)[None]
    with torch.no_grad():
        got, expected = (make_model("gemma3", attention=name)(ids).logits for name in (None, "sdpa"))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
