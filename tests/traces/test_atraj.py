from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.model_folder import fingerprint
from miles_lite.traces import atraj

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
unknown = st.dictionaries(text.map("x_".__add__), json_values, max_size=3)


@st.composite
def trajectories(draw: st.DrawFn) -> dict[str, Any]:
    """Linear ones with unknown fields anywhere, in any order."""
    steps: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(0, 3))):
        output = draw(ids)
        logprobs = [draw(st.floats(-50, 0, width=32)) for _ in output]
        steps.append({"role": "user", "content": draw(text), "turn": turn, "input_ids": draw(ids)} | draw(unknown))
        answer = {"role": "assistant", "content": draw(text), "turn": turn, "parent": turn - 1 if turn else None}
        steps.append(answer | {"output_ids": output, "output_logprobs": logprobs} | draw(unknown))
    leaves = [steps[-1]["turn"]] if steps else []
    data = {
        "format": "atraj",
        "version": 1,
        "steps": steps,
        "leaves": leaves,
        "reward": draw(st.none() | st.floats(-1, 1)),
    }
    mixed = list((draw(unknown) | data).items())
    return dict(draw(st.permutations(mixed)))


@given(data=trajectories())
def test_reading_and_writing_gives_the_same_bytes(
    data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("a") / "one.atraj"
    atraj.write(atraj.parse(data), path)
    first = path.read_bytes()
    atraj.write(atraj.read(path), path)
    assert path.read_bytes() == first
    assert orjson.loads(first) == data
    assert [file.name for file in path.parent.iterdir()] == ["one.atraj"]


@given(data=trajectories())
def test_sequences_are_the_ids_end_to_end_masked_where_sampled(data: dict[str, Any]) -> None:
    trajectory = atraj.parse(data)
    for path, (tokens, mask, logprobs) in zip(trajectory.paths(), trajectory.sequences(), strict=True):
        assert tokens.tolist() == [token for step in path for token in step.ids]
        assert len(tokens) == len(mask) == len(logprobs)
        assert mask.sum() == sum(len(step.ids) for step in path if step.sampled)


def test_a_dropped_stop_token_is_in_no_sequence() -> None:
    trajectory = atraj.parse(
        {
            "format": "atraj",
            "version": 1,
            "leaves": [1],
            "steps": [
                {"role": "user", "content": "", "turn": 0, "input_ids": [1]},
                {"role": "assistant", "content": "", "turn": 0, "parent": None, "output_ids": [2, 3]}
                | {"output_logprobs": [-1.0, -2.0]},
                {"role": "tool", "content": "", "turn": 1, "input_ids": [4], "drop": 1},
                {
                    "role": "assistant",
                    "content": "",
                    "turn": 1,
                    "parent": 0,
                    "output_ids": [5],
                    "output_logprobs": [-3.0],
                },
            ],
        }
    )
    ((ids, mask, logprobs),) = trajectory.sequences()
    assert [row.dtype for row in (ids, mask, logprobs)] == [np.int32, np.uint8, np.float32]
    assert ids.tolist() == [1, 2, 4, 5]
    assert mask.tolist() == [0, 1, 0, 1]
    assert logprobs.tolist() == [0.0, -1.0, 0.0, -3.0]


STEP = {"role": "a", "content": "", "turn": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no trajectory"),
        ({"version": 2}, "version 2"),
        ({"steps": None}, "steps is 'None', expected list"),
        ({"steps": ["x"]}, r"steps\[0\] is no object"),
        ({"steps": [{"role": "user"}]}, r"steps\[0\] has no content"),
        ({"steps": [STEP]}, r"steps\[0\] needs input_ids or output_ids"),
        ({"steps": [STEP | {"turn": "0"}]}, r"steps\[0\]: turn is '0', expected int"),
        ({"steps": [STEP | {"output_ids": [1]}]}, "not as many output_logprobs"),
        ({"steps": [STEP | {"input_ids": [], "tool_result": {"name": "a"}}]}, "tool_result has no exit_code"),
        ({"steps": [STEP | {"input_ids": [], "tool_calls": ["a"]}]}, "a tool call is no object"),
        ({"leaves": [3]}, "turn 3 is named"),
        ({"leaves": [[]]}, r"turn \[\] is named"),
        ({"reward": "1"}, "reward is '1', expected int or float or null"),
    ],
)
def test_what_is_no_trajectory_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.atraj"
    path.write_bytes(orjson.dumps({"format": "atraj", "version": 1, "steps": [], "leaves": []} | change))
    with pytest.raises(UserError, match=message) as caught:
        atraj.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"input_ids": ["a"]}, {"input_ids": [1 << 40]}, {"output_ids": [1], "output_logprobs": [None]}],
)
def test_ids_and_logprobs_that_are_no_numbers_are_in_no_sequence(change: dict[str, Any]) -> None:
    last = STEP | {"output_ids": [], "output_logprobs": []}
    data = {"format": "atraj", "version": 1, "steps": [STEP | {"input_ids": []} | change, last], "leaves": [0]}
    with pytest.raises(UserError, match="a logprob"):
        list(atraj.parse(data).sequences())


def test_a_fingerprint_moves_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    after = fingerprint(tmp_path)
    assert before["model"] == after["model"]
    assert before["tokenizer"] != after["tokenizer"]
