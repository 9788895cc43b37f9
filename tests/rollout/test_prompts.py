from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.rollouts import Data
from miles_lite.errors import UserError
from miles_lite.rollout.prompts import DataSource, Prompt, check_lengths, load_prompts


def options(**changes: Any) -> Data:
    return Data(prompt_data="p.jsonl", **changes)


def write(folder: Path, *lines: str) -> str:
    file = folder / "p.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def test_rows_keep_their_line_number_and_slices_apply(tmp_path: Path) -> None:
    path = write(tmp_path, *(json.dumps({"input": f"q{i}", "metadata": {"i": i}}) for i in range(5)))
    assert [prompt.row for prompt in load_prompts(path, options())] == [1, 2, 3, 4, 5]
    assert [prompt.metadata["i"] for prompt in load_prompts(f"{path}@[1:3]", options())] == [1, 2]


def test_keys_and_seed_are_those_of_the_flags(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"question": "q", "answer": "a", "about": {"k": 1}}))
    (prompt,) = load_prompts(path, options(input_key="question", label_key="answer", metadata_key="about"))
    assert (prompt.input, prompt.label, prompt.metadata) == ("q", "a", {"k": 1})
    prompts = [Prompt(row=row, input="x") for row in range(50)]
    sources = [DataSource(prompts, options(rollout_shuffle=True, rollout_seed=seed)) for seed in (1, 1, 2)]
    first, same, other = ([prompts[source.take()].row for _ in prompts] for source in sources)
    assert first == same != other


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"text": "x"}', "line 2: no key 'input'"),
        ('{"input": "x", "label": ' + "9" * 5000 + "}", "line 2: Exceeds the limit .4300 digits.*write it as text"),
        ('{"input": 3}', "must be a string or a list of chat messages"),
        ('{"input": ["a"]}', "must be a string or a list of chat messages"),
        ('{"input": "x", "metadata": 3}', "'metadata' must be an object"),
        ('{"input": " "}', "'input' is empty: there is nothing to answer"),
        ('{"input": []}', "'input' is empty"),
        ('{"input": [{"role": "system", "content": "x"}, {"role": "user"}]}', "'input' is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prompts(write(tmp_path, '{"input": "fine"}', line), options())


def test_a_missing_file_an_empty_file_and_a_missing_label_are_clear(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_prompts(str(tmp_path / "none.jsonl"), options())
    with pytest.raises(UserError, match="is a folder without prompts"):
        load_prompts(str(tmp_path), options())
    with pytest.raises(UserError, match="holds no prompts"):
        load_prompts(write(tmp_path, ""), options())
    with pytest.raises(UserError, match="--label-key"):
        load_prompts(write(tmp_path, '{"input": "x"}'), options(label_key="answer"))


def test_a_long_prompt_is_named_by_its_line() -> None:
    prompts = [Prompt(row=1, input="ab"), Prompt(row=7, input="abcdef")]
    with pytest.raises(UserError, match="line 7: the prompt has 6 tokens, the limit is 5"):
        check_lengths(prompts, lambda prompt: len(prompt.input), limit=5, source="p.jsonl")


@given(size=st.integers(1, 7), taken=st.integers(0, 30), more=st.integers(1, 20), shuffle=st.booleans())
def test_a_restored_source_continues_exactly(size: int, taken: int, more: int, shuffle: bool) -> None:
    prompts = [Prompt(row=row, input="x") for row in range(size)]
    one = DataSource(prompts, options(rollout_shuffle=shuffle))
    for _ in range(taken):
        one.take()
    other = DataSource(prompts, options(rollout_shuffle=shuffle))
    other.restore(json.loads(json.dumps(one.state())))
    assert [prompts[one.take()].row for _ in range(more)] == [prompts[other.take()].row for _ in range(more)]


def test_every_epoch_deals_every_prompt_once_in_its_own_order() -> None:
    source = DataSource([Prompt(row=row, input="x") for row in range(20)], options(rollout_shuffle=True))
    epochs = [[source.prompts[source.take()].row for _ in range(20)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_restoring_with_another_file_is_refused() -> None:
    source = DataSource([Prompt(row=0, input="x")], options())
    with pytest.raises(UserError, match="made with 2 prompts"):
        source.restore({"epoch": 0, "offset": 0, "prompts": 2})
