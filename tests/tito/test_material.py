"""The material is what it says it is: ids that the vendors publish, and nothing imported."""

from __future__ import annotations

import sys

from tests.tito.material import deepseek, qwen3, stand_in, template, templates


def test_the_qwen_tokenizer_has_the_published_ids() -> None:
    tokenizer = qwen3()
    assert tokenizer.get_vocab_size() == 151_669
    specials = ("<|endoftext|>", "<|im_end|>", "<tool_call>", "<think>", "</think>")
    assert [tokenizer.token_to_id(text) for text in specials] == [151643, 151645, 151657, 151667, 151668]
    assert tokenizer.encode("Hello world").ids == [9707, 1879]
    assert tokenizer.decode(tokenizer.encode("naïve 🎈 e\u0301").ids) == "naïve 🎈 é"


def test_the_deepseek_tokenizer_has_the_published_ids() -> None:
    specials = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
    assert [deepseek().token_to_id(text) for text in specials] == [128803, 128804, 128821, 128822]


def test_a_stand_in_knows_the_control_tokens_of_its_template() -> None:
    tokenizer = stand_in(template("trl/glm4moe"))
    assert tokenizer.token_to_id("<|observation|>") is not None
    assert qwen3().token_to_id("<|observation|>") is None
    assert tokenizer.encode("Hello world").ids == [9707, 1879]


def test_templates_are_found_without_importing_their_packages() -> None:
    assert {"trl/qwen3", "trl/llama3_1", "trl/gptoss", "trl/nemotron_3_nano"} <= set(templates())
    assert not {"trl", "dashscope", "deepseek_tokenizer"} & set(sys.modules)
