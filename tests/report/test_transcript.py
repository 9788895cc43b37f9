"""What a page and a terminal show of kept trajectories: the failures, the best and the worst, every token as text."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError, Where
from miles_lite.report import rollout_table, transcript
from miles_lite.report.page import render
from miles_lite.report.record import read_record
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.report.transcript import MOST_MESSAGES, MOST_TOKENS, speller, transcripts
from miles_lite.report.visible import visible
from miles_lite.rollout.failures import LONGEST
from miles_lite.traces import atraj
from tests.report.helpers import NASTY, Elements, a_run, credit, keep
from tests.report.runs import all_rows, fail


def test_failures_the_best_and_the_worst_are_shown(tiny_model: Path, tmp_path: Path) -> None:
    rows = read_record(a_run(tmp_path, tiny_model)).rollouts
    for row in rows[-32:]:
        keep(tmp_path, row, [40, 41, 42])
    for row in rows[:32]:
        keep(tmp_path, row, [40])
    shown = list(transcripts(read_record(tmp_path)))
    assert [(one.why, one.row["step"]) for one in shown] == [
        *(("failed at engine", 3), ("failed at engine", 0), ("failed at tool", 3), ("failed at tool", 0)),
        *(("best of the last step", 3), ("worst of the last step", 3)),
    ]
    assert [one.row["reward"] for one in shown[-2:]] == [1.0, 0.0]
    asked, answer = shown[-1].messages
    assert (asked.role, asked.text, asked.tokens) == ("user", visible(NASTY), [])
    assert [(token.id, token.version, token.trained) for token in answer.tokens] == [
        (40, 3, True),
        (41, 4, True),
        (42, 4, True),
    ]
    assert [token.likely for token in answer.tokens] == [0, 2, 2]
    spell = speller({"hf_checkpoint": str(tiny_model)})
    assert spell is not None
    assert [token.text for token in answer.tokens] == [visible(spell(token)) for token in (40, 41, 42)]


def test_what_training_made_of_tokens_is_shown(tiny_model: Path, tmp_path: Path) -> None:
    row = read_record(a_run(tmp_path, tiny_model)).rollouts[-1]
    ids, logprobs = [40, 41, 42, 43], [math.log(0.95 / (1 + at)) for at in range(4)]
    keep(tmp_path, row, ids)
    credit(tmp_path, row, ids, trainer=[logprobs[0], logprobs[1] - 0.3, math.nan], advantages=[1.5, -0.5, 0.0])
    page = render([read_record(tmp_path)])
    (best, _) = transcripts(read_record(tmp_path))
    tokens = best.messages[-1].tokens
    assert [(token.trained, token.credit, token.gap) for token in tokens] == [
        *((True, 4, 0), (True, 1, 3), (True, 2, None)),
        (False, None, None),
    ]
    assert "a1 g3" in page
    assert re.search(
        r"logprob -0\.744, trainer&#39;s -1\.044, advantage -0\.5, v4|trainer's -1\.044, advantage -0\.5, v4", page
    )


def test_without_a_tokenizer_the_text_is_there(tmp_path: Path) -> None:
    row = read_record(a_run(tmp_path)).rollouts[-1]
    keep(tmp_path, row, [40, 41], said="forty")
    (best, worst) = transcripts(read_record(tmp_path))
    assert best.row == worst.row == row
    assert [(message.text, message.tokens) for message in best.messages][-1] == ("forty", [])


def test_what_is_shown_is_bounded_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    row = read_record(a_run(tmp_path, tiny_model)).rollouts[-1]
    keep(tmp_path, row, [40] * 700, said="x" * 9000, turns=40)
    best, _ = transcripts(read_record(tmp_path))
    assert sum(len(message.tokens) for message in best.messages) == MOST_TOKENS
    assert best.left_out == 80 - MOST_MESSAGES
    assert "the first 300 shown" in best.messages[3].caption
    assert len(render([read_record(tmp_path)])) < 5_000_000
    whole = transcript.transcript(
        atraj.read(trajectory_path(tmp_path, 3, row["rollout"])), row, why="", spell=None, most=None
    )
    assert len(whole.messages) == 80
    assert len(whole.messages[-1].text) == 9000


def test_whatever_was_said_is_text(tiny_model: Path, tmp_path: Path) -> None:
    for row in read_record(a_run(tmp_path, tiny_model)).rollouts[-32:]:
        keep(tmp_path, row, list(range(3, 60)), said=NASTY)
    page = render([read_record(tmp_path)])
    assert {"script", "img", "iframe"}.isdisjoint(Elements(page).names)
    assert page.count("&lt;script&gt;alert") >= 3
    assert "␀␛[31m" in page
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page) is None
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used <= set(re.findall(r"(--\w+):", page)), "a colour that no theme has"


def test_a_damaged_trajectory_is_named(tmp_path: Path) -> None:
    row = read_record(a_run(tmp_path)).rollouts[-1]
    path = trajectory_path(tmp_path, row["step"], row["rollout"])
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(UserError, match=path.name):
        list(transcripts(read_record(tmp_path)))


@given(st.text(st.characters(codec=None)))
def test_visible_text_steers_nothing(text: str) -> None:
    shown = visible(text)
    assert not {each for each in shown if unicodedata.category(each) in ("Cc", "Cs")} - {"\n", "\t"}
    assert not {
        each
        for each in shown
        if unicodedata.bidirectional(each) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.slow
def test_a_page_of_the_longest_failures_everywhere_stays_below_five_megabytes(tiny_model: Path, tmp_path: Path) -> None:
    run, where = a_run(tmp_path, tiny_model), [str(each) for each in Where]
    for step in range(4):
        rows = rollout_table.read_step(run, step)
        for at, row in enumerate(rows):
            fail(row, where[at % len(where)], f"{step} {at} <b> " + "x" * LONGEST)
        rollout_table.write(run, step, rows)
    for row in all_rows(run)[-2 * len(where) :]:
        keep(run, row, [40 + at % 50 for at in range(500)], said='"<b>" ' * 2000, turns=40)
        credit(run, row, [40 + at % 50 for at in range(500)], trainer=[-1.234] * 500, advantages=[-0.5678] * 500)
    page = render([read_record(run)])
    assert page.count("<details") > 2 * len(where)
    assert 1_000_000 < len(page.encode()) < 5_000_000
