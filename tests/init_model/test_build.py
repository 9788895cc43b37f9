"""A model from nothing, and its warm start."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from miles_lite.engine.heads import check_head
from miles_lite.errors import UserError
from miles_lite.init_model.build import init_model
from miles_lite.init_model.transcripts import encode_transcript, read_transcripts
from miles_lite.init_model.warm_start import warm_start
from miles_lite.train.loading import load_model
from tests.train.helpers import CORPUS, SIZE

CALL = {"type": "function", "function": {"name": "bash", "arguments": {"command": "ls"}}}
RENDERED = '<think>\njumps\n</think>\n\n<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "you are a helpful assistant"},
    {"role": "user", "content": "over the lazy dog"},
    {"role": "assistant", "content": "", "reasoning_content": "jumps", "tool_calls": [CALL]},
    {"role": "tool", "content": "1 2 3"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "the quick brown fox"},
]


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


def test_the_model_has_exactly_the_tokenizers_ids(model_dir: Path, tokenizer: Any) -> None:
    model = load_model(model_dir)
    assert model.config.vocab_size == len(tokenizer) <= SIZE["vocab_size"]
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert json.loads((model_dir / "config.json").read_text())["dtype"] == "float32"
    end, stop = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.config.eos_token_id == tokenizer.eos_token_id == end
    assert GenerationConfig.from_pretrained(model_dir).eos_token_id == [end, stop]


def test_the_same_seed_gives_the_same_folder(model_dir: Path, tmp_path: Path) -> None:
    init_model(tmp_path, corpus=CORPUS, seed=1, **SIZE)
    for path in model_dir.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_markup_is_one_token_and_visible(tokenizer: Any) -> None:
    text = "<think>a</think><tool_call>b</tool_call><|im_end|>"
    ids = tokenizer.encode(text)
    assert len(ids) == 7
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "bash"}}]])
def test_the_template_only_appends(tokenizer: Any, tools: Any) -> None:
    texts = [
        tokenizer.apply_chat_template(MESSAGES[:count], tools=tools, tokenize=False)
        for count in range(1, len(MESSAGES) + 1)
    ]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert f"<|im_start|>assistant\n{RENDERED}<|im_end|>\n" in texts[-1]
    assert texts[-1].count("you are a helpful assistant") == 1


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size 100 is too small"):
        init_model(tmp_path, corpus=CORPUS, seed=1, **(SIZE | {"vocab_size": 100}))
    with pytest.raises(UserError, match="hidden 33 must be a multiple"):
        init_model(tmp_path, corpus=CORPUS, seed=1, **(SIZE | {"hidden": 33}))
    with pytest.raises(UserError, match="of 2 experts 3 cannot take a token"):
        init_model(tmp_path, corpus=CORPUS, seed=1, **SIZE, experts=2, experts_per_token=3)


def test_experts_make_it_a_mixture_that_engines_serve(tmp_path: Path) -> None:
    init_model(tmp_path, corpus=CORPUS, seed=1, **SIZE, experts=4, expert_intermediate=16)
    config = load_model(tmp_path).config
    assert (config.architectures, config.num_experts, config.num_experts_per_tok) == (["Qwen3MoeForCausalLM"], 4, 2)
    check_head(tmp_path)


def test_a_transcript_trains_assistant_turns_and_their_ends(tokenizer: Any) -> None:
    sample = encode_transcript(tokenizer, [*MESSAGES, {"role": "user", "content": "not seen"}]).validate()
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert tokenizer.decode(sample.tokens) + "\n" == rendered
    assert sample.tokens.tolist() == tokenizer.encode(rendered)[: len(sample)]
    edges = np.flatnonzero(np.diff(sample.loss_mask))
    turns = np.split(sample.tokens, edges + 1)[1::2]
    assert [tokenizer.decode(turn) for turn in turns] == [
        RENDERED + "<|im_end|>",
        "the quick brown fox<|im_end|>",
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"input": 1}', '{"messages": [{"role": "user", "content": "x"}]}'])
def test_a_malformed_transcript_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_text(json.dumps({"messages": MESSAGES}) + "\n" + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_transcripts(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_warm_start_learns(tmp_path: Path, threads: int) -> None:
    model = tmp_path / "model"
    init_model(model, corpus=CORPUS, seed=1, **SIZE)
    transcripts = tmp_path / "transcripts.jsonl"
    transcripts.write_text("\n".join(json.dumps({"messages": MESSAGES}) for _ in range(3)))
    files = {path.name for path in model.iterdir()}
    result = warm_start(model, transcripts, steps=30, batch=4, lr=1e-2, seed=0, threads=threads)
    assert result.last_loss < 0.6 * result.first_loss
    assert {path.name for path in model.iterdir()} == files
    again = warm_start(model, transcripts, steps=1, batch=4, lr=1e-9, seed=0, threads=1)
    assert again.first_loss < result.last_loss
    with pytest.raises(UserError, match="no model in"):
        warm_start(tmp_path / "absent", transcripts, steps=1, batch=1, lr=1e-3, seed=0, threads=1)
