"""What a run adds to its folder line by line: whatever a row says, and whenever it was killed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import UserError
from miles_lite.report import rollout_table
from miles_lite.report.history import read_history
from miles_lite.report.json_lines import append
from tests.report.runs import all_rows

TEXT = st.text(st.characters(codec=None), max_size=8)
"""Also with lone surrogates, as of file names that are no UTF-8."""


@given(st.lists(st.dictionaries(TEXT, TEXT | st.floats() | st.none() | st.integers(-(2**63), 2**63 - 1))), st.binary())
def test_every_row_is_a_line_behind_whatever_was_there(rows: list[dict[str, object]], torn: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_bytes(torn.replace(b"{", b"["))
        append(path, rows)
        append(path, rows)
        assert len(read_history(path)) == 2 * len(rows)


def test_a_full_disk_is_called_one() -> None:
    with pytest.raises(UserError, match="the disk is full"):
        append(Path("/dev/full"), [{"a": 1}])


@given(TEXT, st.floats())
def test_no_text_and_no_number_keep_a_step_from_its_table(why: str, reward: float) -> None:
    with TemporaryDirectory() as folder:
        row = dict.fromkeys(rollout_table.COLUMNS) | dict.fromkeys(rollout_table.ALWAYS, 0)
        row |= {"outcome": "trained", "status": "failed", "why": why, "reward": reward}
        rollout_table.write(Path(folder), 0, [row])
        (read,) = all_rows(Path(folder))
    assert read["why"] == why.encode("utf-8", "replace").decode()
    assert read["reward"] in (reward, None)
