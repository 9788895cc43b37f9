"""Rows of every kind of file, mixed, skipped and looked at; and an order that is held nowhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.cli import main
from miles_lite.config.options import parse
from miles_lite.config.rollouts import Data
from miles_lite.errors import UserError
from miles_lite.rollout import prompts as module
from miles_lite.rollout.agent_sampling import sampling
from miles_lite.rollout.prompt_data import jsonl_rows, open_rows
from miles_lite.rollout.prompt_data.jsonl_rows import JsonlRows
from miles_lite.rollout.prompt_lengths import fitting
from miles_lite.rollout.prompt_order import Permutation
from miles_lite.rollout.prompts import CHECKED, DataSource, Prompt, load_prompts, open_source
from tests.session.engine import STOP, answer, bench

ROWS = [
    {"input": [{"role": "user", "content": f"q{at}"}], "label": str(at % 3), "metadata": {"at": at}} for at in range(10)
]

LINES = [b'{"a": 1}', b"", b"  ", b"\t", b'  {"b": 2}', b"x" * 40]


def options(source: str, **changes: Any) -> Data:
    return Data(prompt_data=source, label_key="label", **changes)


def told(prompts: Any) -> list[tuple[Any, ...]]:
    return [(prompt.input, prompt.label, prompt.metadata) for prompt in prompts]


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    made = Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "p.parquet", batch_size=3)
    made.save_to_disk(tmp_path / "saved", num_shards=3)
    DatasetDict(train=made, test=made.select(range(2))).save_to_disk(tmp_path / "split")
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    made.select(range(4)).to_parquet(folder / "train-0.parquet")
    made.select(range(4, 10)).to_parquet(folder / "train-1.parquet")
    made.to_parquet(folder / "test-0.parquet")
    wanted = told(load_prompts(jsonl(tmp_path / "p.jsonl"), options("-")))
    sources = ["p.parquet", "saved", "split", "hub", "hub/data/train-*.parquet", "saved/*.arrow"]
    for source in sources:
        assert told(load_prompts(str(tmp_path / source), options("-"))) == wanted, source
    (last,) = load_prompts(f"{tmp_path / 'hub'}@[9:]", options("-"))
    assert last.metadata == {"at": 9}
    assert last.row == 6  # of its own file


def test_nulls_that_columns_add_are_no_keys(tmp_path: Path) -> None:
    rows = [{"input": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "n"}]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    (prompt,) = load_prompts(str(tmp_path / "p.parquet"), Data(prompt_data="-"))
    assert prompt.input == rows[0]["input"]


@settings(max_examples=60)
@given(lines=st.lists(st.sampled_from(LINES), max_size=12), end=st.booleans(), chunk=st.integers(1, 60))
def test_lines_are_those_that_splitlines_finds(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bool, chunk: int
) -> None:
    ends = [b"\n", b"\r\n", b"\r"]
    text = b"".join(line + ends[at % 3] for at, line in enumerate(lines)) + (b"{}" if end else b"")
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    file.write_bytes(text)
    wanted = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl_rows, "CHUNK", chunk)
        rows = JsonlRows(file)
    numbers = [rows.number(place) for place in range(len(rows))]
    assert [(number, rows.line(number - 1)) for number in numbers] == wanted


@given(size=st.integers(1, 300), seed=st.text(max_size=5))
@settings(max_examples=30)
def test_a_permutation_has_every_place_once(size: int, seed: str) -> None:
    order = Permutation(size, seed)
    assert sorted(order) == list(range(size))
    assert order[0:2] == list(order)[:2]


def test_orders_are_what_they_were_and_very_long_ones_take_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(row=row, input="x") for row in range(30)]
    shuffled = options("-", rollout_shuffle=True, rollout_seed=7)
    wanted = list(range(30))
    random.Random("7-0").shuffle(wanted)
    source = DataSource(prompts, shuffled)
    assert [source.take() for _ in prompts] == wanted
    monkeypatch.setattr(module, "SHUFFLED", 8)
    long = DataSource(prompts, shuffled)
    first = [long.take() for _ in prompts]
    assert sorted(first) == list(range(30)) != first
    again = DataSource(prompts, shuffled)
    again.restore({"epoch": 0, "offset": 10, "prompts": 30})
    assert [again.take() for _ in range(20)] == first[10:]


def test_sources_are_mixed_by_their_weights_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS[:2])
    jsonl(tmp_path / "b.jsonl", ROWS[5:])
    data = options(f"{tmp_path}/a.jsonl=3,{tmp_path}/b.jsonl=1", rollout_shuffle=True)
    source, other = open_source(data), open_source(data)
    dealt = [source.prompts[source.take()].metadata["at"] for _ in range(40)]
    assert sum(at < 2 for at in dealt) == 30
    assert all(abs(sum(at < 2 for at in dealt[:size]) - size * 0.75) <= 1 for size in range(41))
    assert len(source) == 7
    for _ in range(11):
        other.take()
    third = open_source(data)
    third.restore(json.loads(json.dumps(other.state())))
    assert [third.prompts[third.take()].metadata["at"] for _ in range(29)] == dealt[11:]
    with pytest.raises(UserError, match="made with other sources"):
        third.restore({"epoch": 0, "offset": 0, "prompts": 7})


def test_prompts_that_are_too_long_are_skipped_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"input": word} for word in ("short", "long " * 200, "also short")]
    path = jsonl(tmp_path / "p.jsonl", rows)
    flags = f"--hf-checkpoint {tiny_model} --prompt-data {path} --rollout-batch-size 1 --num-rollout 1"
    config, _ = parse([*flags.split(), "--rollout-max-prompt-len", "40", "--overlong-prompts", "skip"])
    source = open_source(config.data, fits=fitting(config))
    assert [source.take() for _ in range(4)] == [0, 2, 0, 2]
    assert source.skipped == 2
    only = DataSource([Prompt(row=1, input="x")], options("-"), fits=lambda prompt: False)
    with pytest.raises(UserError, match="every prompt of --prompt-data is too long"):
        only.take()


def test_tools_and_a_system_prompt_come_from_the_row_and_the_flag(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    own = [{"role": "system", "content": "own"}]
    rows: list[dict[str, Any]] = [{"input": "q", "functions": json.dumps([tool])}, {"input": own}]
    data = Data(prompt_data="-", tool_key="functions", system_prompt="be brief")
    first, second = load_prompts(jsonl(tmp_path / "p.jsonl", rows), data)
    assert first.tools == [tool]
    assert first.input == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    assert (second.tools, second.input) == (None, own)
    with pytest.raises(UserError, match="'functions' must be a list of tools"):
        load_prompts(jsonl(tmp_path / "bad.jsonl", [{"input": "q", "functions": "x"}]), data)


async def test_the_runs_template_options_are_those_of_every_request(tiny_model: Path) -> None:
    flags = f"--hf-checkpoint {tiny_model} --prompt-data p --rollout-batch-size 1 --num-rollout 1"
    config, _ = parse([*flags.split(), "--apply-chat-template-kwargs", '{"enable_thinking": false}'])
    assert config.session.template_options == {"enable_thinking": False}
    async with bench(tiny_model, lambda body: answer([40, STOP])) as b:
        session = await b.client.create(dict(sampling(config.rollouts)))
        assert session
    for wrong in ("[]", "{"):
        with pytest.raises(UserError, match="--apply-chat-template-kwargs"):
            parse([*flags.split(), "--apply-chat-template-kwargs", wrong])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"no", "is no Parquet file"),
        ("p.arrow", b"no", "is no Arrow file"),
        ("p.parquet", None, "no such file"),
        ("*.parquet", None, "no such file"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_rows(str(tmp_path / name))


def test_a_folder_of_other_things_and_a_last_line_that_is_half_written_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is a folder without prompts"):
        open_rows(str(tmp_path))
    file = tmp_path / "p.jsonl"
    file.write_text('{"input": "a"}\n' * (CHECKED + 5) + '{"inp')
    with pytest.raises(UserError, match=rf"p\.jsonl, line {CHECKED + 6}: not JSON"):
        open_source(Data(prompt_data=str(file)))
    assert len(open_source(Data(prompt_data=f"{file}@[:-1]")).prompts) == CHECKED + 5


def test_a_file_can_be_looked_at(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "p.jsonl", [*ROWS, ROWS[0]])
    assert main(["data", "look", path, "--label-key", "label", "--rows", "1", "--hf-checkpoint", str(tiny_model)]) == 0
    said = capsys.readouterr().out
    assert f"{path}: 11 rows\n\nrow 1\n  user: q0\n  label: 0\n  metadata: at\n" in said
    assert "duplicates: 1 rows say what one before them does" in said
    assert "labels: 3 different; 0 x5, 1 x3, 2 x3" in said
    assert "prompts in tokens: least " in said
    odd = [{"input": "\x1b[31mred\x07 \u202e" + "x" * 3000, "label": "\x1b[0m"}]
    assert main(["data", "look", jsonl(tmp_path / "odd.jsonl", odd), "--label-key", "label"]) == 0
    said = capsys.readouterr().out
    assert "  user: \u241b[31mred\u2407 \\u202exxx" in said
    assert "labels: 1 different; \u241b[0m x1" in said
    assert max(map(len, said.splitlines())) < 160
    assert main(["data", "look", path, "--input-key", "nothing"]) == 2
    assert "line 1: no key 'nothing' (--input-key)" in capsys.readouterr().err
