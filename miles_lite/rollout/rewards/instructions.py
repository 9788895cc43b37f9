"""Instructions that a program can check, by the names of IFEval (arXiv:2311.07911, table 1).

Invariant: CHECKS is one line for each; one that needs a language's knowledge is not here, and is refused by name. None
takes more than a few passes over a response, whatever it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from miles_lite.rollout.rewards.answer import Answer

Arguments: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[str, Arguments], bool]


def ifeval(answer: Answer) -> dict[str, float]:
    """`score` is 1 when every instruction of the row is followed, `followed` the share that is.

    Metadata: `instruction_id_list`, and `kwargs`, an object for each. Raises ValueError for one that is not known.
    """
    names = answer.metadata.get("instruction_id_list")
    told = answer.metadata.get("kwargs") or [{}] * len(names or ())
    if not isinstance(names, list) or not names or len(told) != len(names):
        raise ValueError("the row's metadata needs instruction_id_list, and kwargs of the same length")
    if unknown := [name for name in names if name not in CHECKS]:
        raise ValueError(f"ifeval cannot check {', '.join(unknown)}; it checks {', '.join(CHECKS)}")
    followed = [
        bool(answer.response.strip()) and CHECKS[name](answer.response, _Given(given or {}))
        for name, given in zip(names, told, strict=True)
    ]
    return {"score": float(all(followed)), "followed": sum(followed) / len(followed)}


class _Given(dict[str, Any]):
    """The arguments of an instruction."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"the kwargs of an instruction lack '{key}'")


def _related(count: int, given: Arguments, key: str, relation: str = "relation") -> bool:
    """`count` beside the number of the instruction: "at least" it (the default), or "less than" it."""
    wanted = int(given[key])
    return count < wanted if given.get(relation) == "less than" else count >= wanted


def _count(pattern: str, text: str, flags: int = 0) -> int:
    return len(re.findall(pattern, text, flags))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _paragraphs(text: str, mark: str = r"\n\n") -> list[str]:
    return [part.strip() for part in re.split(mark, text) if part.strip()]


def _keyword(text: str, word: str) -> int:
    return _count(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)


def _nth_first_word(text: str, given: Arguments) -> bool:
    parts, nth = _paragraphs(text), int(given["nth_paragraph"])
    right = len(parts) == int(given["num_paragraphs"]) and 0 < nth <= len(parts)
    return right and _words(parts[nth - 1].lower())[:1] == [str(given["first_word"]).lower()]


def _json_format(text: str, given: Arguments) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _postscript(text: str, given: Arguments) -> bool:
    mark = re.escape(str(given["postscript_marker"])).replace(r"\.", r"\.\s?")
    return re.search(rf"(?im)^[^\S\n]*+{mark}", text) is not None


def _title(text: str, given: Arguments) -> bool:
    """Whether a line has something between << and >>."""
    lines = ((line, line.find("<<"), line.rfind(">>")) for line in text.split("\n"))
    return any(start >= 0 and line[start + 2 : end].strip() for line, start, end in lines if end >= 0)


CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda text, given: all(_keyword(text, word) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: not any(_keyword(text, word) for word in given["forbidden_words"]),
    "keywords:frequency": lambda text, given: _related(_keyword(text, given["keyword"]), given, "frequency"),
    "keywords:letter_frequency": lambda text, given: _related(
        text.lower().count(str(given["letter"]).lower()), given, "let_frequency", "let_relation"
    ),
    "length_constraints:number_words": lambda text, given: _related(len(_words(text)), given, "num_words"),
    "length_constraints:number_sentences": lambda text, given: _related(
        _count(r"(?<![.!?])[.!?]++(?=\s|$)", text.strip()), given, "num_sentences"
    ),
    "length_constraints:number_paragraphs": lambda text, given: (
        len(_paragraphs(text, r"\s?\*\*\*\s?")) == int(given["num_paragraphs"])
    ),
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "detectable_content:number_placeholders": lambda text, given: (
        _count(r"\[[^\[\]\n]*+\]", text) >= int(given["num_placeholders"])
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda text, given: (
        _count(r"(?m)^[^\S\n]*+(?:\*(?!\*)|-)\s*+\S", text) == int(given["num_bullets"])
    ),
    "detectable_format:number_highlighted_sections": lambda text, given: (
        _count(r"\*\*[^\n*]+\*\*|(?<!\*)\*[^\n*]+\*(?!\*)", text) >= int(given["num_highlights"])
    ),
    "detectable_format:multiple_sections": lambda text, given: (
        _count(rf"\s?{re.escape(str(given['section_spliter']))}\s?\d+\s?", text) >= int(given["num_sections"])
    ),
    "detectable_format:constrained_response": lambda text, given: any(each in text for each in CONSTRAINED),
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, given: (
        text.strip().lower().startswith(str(given["prompt_to_repeat"]).strip().lower())
    ),
    "startend:end_checker": lambda text, given: (
        text.strip().strip('"').lower().endswith(str(given["end_phrase"]).strip().lower())
    ),
    "startend:quotation": lambda text, given: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda text, given: _related(
        sum(word.isupper() for word in _words(text)), given, "capital_frequency", "capital_relation"
    ),
    "change_case:english_capital": lambda text, given: text.isupper(),
    "change_case:english_lowercase": lambda text, given: text.islower(),
    "punctuation:no_comma": lambda text, given: "," not in text,
}
