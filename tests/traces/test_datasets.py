from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from miles_lite.commands.traces import main
from miles_lite.errors import UserError
from miles_lite.traces import atraj
from miles_lite.traces.datasets import split_of

ROOT = Path(__file__).parents[2]


def trajectory(prompt: int, output: Sequence[int], reward: float | None) -> atraj.Trajectory:
    """system, user, a sampled call, its result, a sampled answer."""
    call = {"name": "echo", "arguments_json": "{}"}
    result = {"name": "echo", "stdout": "x", "stderr": "", "exit_code": 0, "duration_sec": 0.1}
    sampled = {"output_logprobs": [-0.25] * len(output), "temperature": 1.0}
    steps = [
        {"role": "system", "content": "s", "turn": 0, "input_ids": []},
        {"role": "user", "content": f"prompt {prompt}", "turn": 0, "input_ids": [1, prompt]},
        {
            "role": "assistant",
            "content": "call",
            "turn": 0,
            "parent": None,
            "output_ids": list(output),
            "tool_call": call,
        }
        | sampled,
        {
            "role": "tool",
            "sent_as": "user",
            "content": "r",
            "turn": 1,
            "input_ids": [7],
            "drop": 1,
            "tool_result": result,
        },
        {"role": "assistant", "content": "done", "turn": 1, "parent": 0, "output_ids": list(output)} | sampled,
    ]
    data = {"format": "atraj", "version": 1, "task": "t", "reward": reward, "leaves": [1], "steps": steps}
    stored = {"prompt": {"input": f"prompt {prompt}", "label": prompt, "metadata": {"k": 1}}}
    return atraj.parse(data | {"metadata": stored})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompt 10: rewards 1, 0 and a duplicate of the first; 11: 1 and none; 12: 0.5 and 0.5."""
    rewards = [(10, 2, 1.0), (10, 3, 0.0), (10, 2, 1.0), (11, 4, 1.0), (11, 5, None), (12, 6, 0.5), (12, 7, 0.5)]
    for index, (prompt, token, reward) in enumerate(rewards):
        atraj.write(trajectory(prompt, [token, 9], reward), tmp_path / "in" / f"{index}.atraj")
    return tmp_path / "in"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def convert(folder: Path, *flags: str) -> Path:
    out = folder.parent / "out"
    assert main(["to-data", str(folder), "--out", str(out), *flags]) == 0
    return out


def test_sft_and_parquet_rows_are_the_stored_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(folder)
    written = rows(out / "sft.jsonl")
    assert len(written) == 6
    assert written[0]["input_ids"] == [1, 10, 2, 7, 2, 9]
    assert written[0]["loss_mask"] == [0, 0, 1, 0, 1, 1]
    assert [message["role"] for message in written[0]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    table = parquet.read_table(out / "tokens.parquet").to_pylist()
    for row, stored in zip(written, table, strict=True):
        for name in ("input_ids", "loss_mask", "reward", "task", "source"):
            assert row[name] == stored[name]
    assert table[0]["logprobs"] == [0.0, 0.0, -0.25, 0.0, -0.25, -0.25]
    assert "duplicates 1" in capsys.readouterr().out


def test_pairs_are_of_one_prompt_and_prefer_the_better_reward(folder: Path) -> None:
    (pair,) = rows(convert(folder, "--format", "dpo") / "dpo.jsonl")
    assert pair["prompt_ids"] == [1, 10]
    assert pair["chosen_ids"] == [2, 7, 2, 9]
    assert pair["chosen_mask"] == [1, 0, 1, 1]
    assert pair["rejected_ids"] == [3, 7, 3, 9]
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (1.0, 0.0)
    assert [message["content"] for message in pair["prompt"]] == ["s", "prompt 10"]
    assert [message["content"] for message in pair["chosen"]] == ["call", "r", "done"]


def test_prompts_come_back_as_they_were_given(folder: Path) -> None:
    prompts = rows(convert(folder, "--format", "rlvr") / "rlvr.jsonl")
    assert [row["input"] for row in prompts] == ["prompt 10", "prompt 11", "prompt 12"]
    assert prompts[0] == {"input": "prompt 10", "label": 10, "metadata": {"k": 1}, "task": "t"}


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--success"], 2),
        (["--min-reward", "0.5"], 4),
        (["--max-reward", "0.5"], 3),
        (["--no-dedup"], 7),
        (["--max-seq-len", "5"], 0),
        (["--min-reward", "0.1", "--max-reward", "0.9"], 2),
    ],
)
def test_filters_by_reward_success_length_and_duplicates(folder: Path, flags: list[str], kept: int) -> None:
    out = convert(folder, *flags)
    assert len(rows(out / "sft.jsonl")) == kept
    assert parquet.read_table(out / "tokens.parquet").num_rows == kept


def test_splits_are_by_prompt_and_the_same_for_ever(folder: Path) -> None:
    out = convert(folder, "--split", "train=0.5", "test=0.5", "--format", "sft")
    first = {name: (out / f"sft.{name}.jsonl").read_bytes() for name in ("train", "test")}
    prompts = [{tuple(row["input_ids"][:2]) for row in rows(out / f"sft.{name}.jsonl")} for name in first]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 3
    convert(folder, "--split", "train=0.5", "test=0.5", "--format", "sft")
    assert first == {name: (out / f"sft.{name}.jsonl").read_bytes() for name in first}


@given(prompt=st.binary(min_size=16, max_size=16), share=st.floats(0.01, 0.5))
def test_a_prompt_is_in_one_split_or_in_none(prompt: bytes, share: float) -> None:
    assert split_of(prompt, {"all": 1.0}) == "all"
    some = split_of(prompt, {"a": share, "b": share})
    assert some in ("a", "b", None)
    if some == "a":
        assert split_of(prompt, {"a": share + 0.1}) == "a"


def test_a_broken_file_is_named_and_leaves_the_datasets_as_they_were(folder: Path) -> None:
    out = convert(folder)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(before) == ["dpo.jsonl", "rlvr.jsonl", "sft.jsonl", "tokens.parquet"]
    (folder / "5.atraj").write_bytes((folder / "5.atraj").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"5\.atraj is no trajectory: not JSON"):
        convert(folder)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_show_stats_and_diff_say_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", str(folder / "0.atraj")])
    shown = capsys.readouterr().out
    assert "reward 1" in shown
    assert "[2] assistant, turn 0, 2 ids, mean logprob -0.250, calls echo" in shown
    main(["stats", str(folder)])
    stats = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines())
    assert stats["trajectories"] == "7"
    assert stats["successes (reward 1)"] == "3"
    assert stats["mean reward"] == "0.6667"
    assert stats["tool echo, exit code 0"] == "7"
    main(["diff", str(folder / "0.atraj"), str(folder / "1.atraj")])
    diff = capsys.readouterr().out
    assert "steps 5 | 5, the first 2 equal" in diff
    assert "ids part at 0 of 2 | 2: [2, 9] | [3, 9]" in diff


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    """As in `traces show FILE | head -1`."""
    argv = [sys.executable, "-m", "miles_lite", "traces", "show", str(folder / "0.atraj")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["to-data", "EMPTY", "--out", "x"], "no .atraj files"),
        (["to-data", "EMPTY/none", "--out", "x"], "none is no folder"),
        (["stats", "EMPTY/none"], "none is no folder"),
        (["show", "EMPTY"], "is a folder"),
        (["show", "EMPTY", "--width", "-1"], "--width must be at least 0"),
        (["to-data", "EMPTY", "--out", "x", "--split", "a"], "NAME=SHARE"),
        (["to-data", "EMPTY", "--out", "x", "--split", "a=0.9", "b=0.2"], "add up to at most 1"),
        (["to-data", "EMPTY", "--out", "x", "--split", "a=nan"], "a share is above 0"),
        (["to-data", "EMPTY", "--out", "x", "--split", "a/b=0.5"], "NAME=SHARE"),
        (["to-data", "EMPTY", "--out", "x", "--split", "a=0.1", "a=0.2"], "a is there twice"),
        (["nosuch"], "no command 'nosuch'"),
        (["show", "EMPTY/none.atraj"], "cannot read"),
    ],
)
def test_mistakes_are_named(flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main([flag.replace("EMPTY", str(tmp_path)) for flag in flags])
