"""Each built-in rule beside known examples, and its laws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.choices import RewardRule
from miles_lite.rollout.rewards import REWARDS
from miles_lite.rollout.rewards.answer import Answer, Pure, number_in
from miles_lite.rollout.rewards.final_answer import last_boxed
from miles_lite.rollout.rewards.instructions import CHECKS

TEXT = st.text(st.sampled_from("ab \\{}$1.,\n()"), max_size=60)


def score(rule: str, response: str, label: Any = None, **metadata: Any) -> float | None:
    judge = REWARDS[RewardRule(rule)]
    assert isinstance(judge, Pure)
    return number_in(judge.function(Answer(response=response, label=label, metadata=metadata)), "score")


@pytest.mark.parametrize(
    ("rule", "response", "label", "expected"),
    [
        ("boxed", r"so \boxed{\frac{1}{2}}", r"\dfrac{1}{2}", 1),
        ("boxed", r"\boxed{1} no, \boxed{2}", "1", 0),
        ("boxed", "it is 2", "2", 0),
        ("math", r"Thus $x = \frac{1}{2}$.", "0.5", 1),
        ("math", r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
        ("math", r"\boxed{3}", "4", 0),
        ("math", "", "4", 0),
        ("deepscaler", r"<think>2+2</think>\boxed{4}", "4", 1),
        ("deepscaler", r"<think>2+2</think>\boxed{4.0}", ["5", r"\boxed{4}"], 1),
        ("deepscaler", r"\boxed{4}", "4", 0),
        ("deepscaler", r"<think>\boxed{4}</think>four", "4", 0),
        ("dapo", "Reasoning.\nAnswer: 34", "34", 1),
        ("dapo", "Answer: 1\nAnswer: $x = 1,234$", "1234", 1),
        ("dapo", "Answer: 34 dollars", "34", 1),
        ("dapo", "Answer: 35", "34", -1),
        ("dapo", "Answer: 34" + "." * 400, "34", -1),
        ("dapo", "", "", -1),
        ("gpqa", "The answer is (B).", "B", 1),
        ("gpqa", "Option A is wrong. Final answer: **C**", "C", 1),
        ("gpqa", r"</think> \boxed{D}", 3, 1),
        ("gpqa", "I do not know", "A", 0),
        ("f1", "The cat sat.", "a cat sat", 1),
        ("f1", "cat", ["dog", "cat sat"], 2 / 3),
        ("f1", "dog", "cat", 0),
        ("f1", "the", "an", 1),
        ("exact_match", " 42\n", "42", 1),
        ("contains", "it is 42.", "42", 1),
    ],
)
def test_known_answers(rule: str, response: str, label: Any, expected: float) -> None:
    assert score(rule, response, label) == pytest.approx(expected)


def test_a_choice_may_be_repeated_as_text_and_the_row_may_say_which_is_right() -> None:
    assert score("gpqa", "Paris", "paris", choices=["Rome", "Paris"]) == 1
    assert score("gpqa", r"\boxed{Paris}", None, choices=["Rome", "Paris"], correct_letter="B") == 1
    assert score("gpqa", "answer: D", "D", choices=["Rome", "Paris"]) == 0


FOLLOWED: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["sun", "moon"]}, "Sun and moon", "sunny moon"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "category", "a Cat"),
    "keywords:frequency": ({"keyword": "a", "frequency": 2, "relation": "at least"}, "a b a", "a"),
    "keywords:letter_frequency": ({"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "z", "zZ"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "less than"}, "One.", "One. Two!"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "yes"},
        "no\n\nYes, so",
        "yes\n\nno",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] [age]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Hi\nP.S. bye", "Hi"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a*"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nSection 2",
        "-",
    ),
    "detectable_format:constrained_response": ({}, "My answer is no.", "no"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a}"),
    "detectable_format:title": ({}, "<<Title>> text", "<<>>"),
    "combination:two_responses": ({}, "a ****** b", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say hi"}, "say hi. hi", "hi"),
    "startend:end_checker": ({"end_phrase": "The end"}, "So. the end", "so"),
    "startend:quotation": ({}, '"so"', '"so'),
    "change_case:capital_word_frequency": ({"capital_frequency": 1, "capital_relation": "at least"}, "AN ox", "an ox"),
    "change_case:english_capital": ({}, "AN OX!", "AN ox"),
    "change_case:english_lowercase": ({}, "an ox!", "An ox"),
    "punctuation:no_comma": ({}, "an ox", "an, ox"),
}


def test_every_instruction_has_an_example() -> None:
    assert set(FOLLOWED) == set(CHECKS)


@pytest.mark.parametrize("name", FOLLOWED)
def test_instructions(name: str) -> None:
    arguments, good, bad = FOLLOWED[name]
    row = {"instruction_id_list": [name, "startend:end_checker"], "kwargs": [arguments, {"end_phrase": ""}]}
    assert score("ifeval", good, **row) == 1
    assert score("ifeval", bad, **row) == 0


def test_an_instruction_that_cannot_be_checked_is_named() -> None:
    with pytest.raises(ValueError, match="ifeval cannot check language:response_language; it checks keywords:"):
        score("ifeval", "x", instruction_id_list=["language:response_language"], kwargs=[{}])
    with pytest.raises(ValueError, match="needs instruction_id_list"):
        score("ifeval", "x")


@given(TEXT)
def test_what_is_boxed_last_is_found(text: str) -> None:
    assert last_boxed(f"{text} \\boxed{{4{{2}}}}") == "4{2}"


@settings(max_examples=50)
@given(response=TEXT, label=TEXT.filter(str.strip))
def test_scores_are_bounded_and_a_label_is_its_own_answer(response: str, label: str) -> None:
    for rule in ("boxed", "dapo", "gpqa", "f1", "exact_match", "contains"):
        assert -1 <= (score(rule, response, label) or 0) <= 1
    assert score("exact_match", label, label) == score("contains", label, label) == score("f1", label, label) == 1


PROGRAM = "Here:\n```python\ndef add(a, b):\n    return a + b\n```"


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        (["assert add(1, 2) == 3", "assert add(0, 0) == 0"], 1),
        (["assert add(1, 2) == 3", "assert add(0, 0) == 1"], 0),
        ({"inputs": [[1, 2], [2, 2]], "outputs": [3, [4]], "fn_name": "add"}, 1),
        (json.dumps({"inputs": [[1, 2]], "outputs": [4], "fn_name": "add"}), 0),
        ("assert add(1, 2) == 3", 1),
    ],
)
def test_programs_are_run(tests: Any, expected: float) -> None:
    assert score("code", PROGRAM, tests) == expected


def test_programs_read_and_print_and_some_tests_may_pass() -> None:
    pairs = {"inputs": ["3\n", "4\n"], "outputs": ["6\n", "9"]}
    judge = REWARDS[RewardRule.CODE]
    assert isinstance(judge, Pure)
    program = "```python\nprint(2 * int(input()))\n```"
    assert judge.function(Answer(response=program, metadata={"tests": pairs})) == {"score": 0.0, "passed": 0.5}
    assert score("code", "no program", None, tests=pairs) == 0
    with pytest.raises(ValueError, match="code needs tests"):
        score("code", program, None)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "x = [0] * (1 << 40)",
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "open('/etc/miles_lite_was_here', 'w')",
        "import sys; sys.exit(1)",
    ],
)
def test_what_a_program_does_is_a_reward_of_0(program: str) -> None:
    assert score("code", f"```python\n{program}\n```", ["assert True"], timeout=1.0) == 0


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import threading, os; threading.Timer(0, os._exit, [0]).start(); import time; time.sleep(2)",
    ],
)
def test_a_program_that_ends_before_the_tests_has_not_passed_them(program: str) -> None:
    assert score("code", f"```python\n{program}\n```", tests=["assert False"]) == 0.0


def test_what_a_program_printed_is_not_read_from_where_it_points(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("42")
    program = f"import os\nfor name in os.listdir('.'):\n    os.remove(name)\nos.symlink({str(secret)!r}, '.output')"
    tests = {"inputs": [""], "outputs": ["42"]}
    assert score("code", f"```python\n{program}\n```", tests=tests) == 0.0


def _boxed_slowly(text: str) -> str | None:
    for found in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for at in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[found.end() : at].strip()
    return None


@given(st.lists(st.sampled_from(["\\boxed{", "\\fbox {", "\\boxed ", "{", "}", "a", " "]), max_size=30).map("".join))
def test_the_last_box_is_found_in_one_pass(text: str) -> None:
    assert last_boxed(text) == _boxed_slowly(text)


def test_a_response_of_nothing_but_boxes_takes_no_longer() -> None:
    assert last_boxed("\\boxed{" * 300_000) is None


def test_an_empty_label_is_in_each_response_and_no_reward() -> None:
    with pytest.raises(ValueError, match="the row's label is empty"):
        score("contains", "anything", "")


SLOWLY = {
    "detectable_content:number_placeholders": lambda text: len(re.findall(r"\[.*?\]", text)) >= 2,
    "detectable_format:number_bullet_lists": lambda text: len(re.findall(r"(?m)^\s*(?:\*(?!\*)|-)\s*\S", text)) == 2,
    "length_constraints:number_sentences": lambda text: len(re.findall(r"[.!?]+(?=\s|$)", text.strip())) >= 2,
    "detectable_format:title": lambda text: re.search(r"<<[^\n]*\S[^\n]*>>", text) is not None,
    "detectable_content:postscript": lambda text: re.search(r"(?im)^\s*P\.\s?S.*$", text) is not None,
}
"""What some instructions mean, said as briefly as it can be."""
GIVEN = {"num_placeholders": 2, "num_bullets": 2, "num_sentences": 2, "postscript_marker": "P.S"}


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("[]<>*-.!\n aPS"), max_size=14))
def test_instructions_that_are_read_in_one_pass_mean_what_they_say(text: str) -> None:
    for name, meaning in SLOWLY.items():
        assert CHECKS[name](text, GIVEN) == meaning(text), name


MANY = 100_000
HOSTILE = [
    *(each * MANY for each in ("\n", " \n", "[", "<<", "<< ", "*", '"', "- ", "answer:", "\\text{", "9", "\\boxed{")),
    *(word + " " * MANY + "!" for word in ("answer", "option (", "\\boxed", "\\text", "-", "answer is")),
    "." * MANY + "x",
    "[" * MANY + "]" * MANY,
    "P.S" + " \n" * MANY,
]


@pytest.mark.parametrize("response", HOSTILE, ids=lambda text: ascii(text[:9]))
def test_no_response_takes_a_rule_for_ever(response: str) -> None:
    """Of 100,000 signs each: to go over them again for each of them would take hours."""
    for rule in ("gpqa", "boxed", "dapo", "f1", "exact_match", "contains"):
        assert score(rule, response, "label") in (0, -1), rule
    for name, (told, _, _) in FOLLOWED.items():
        assert CHECKS[name](response, told) in (True, False), name
