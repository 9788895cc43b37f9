"""A file is written beside its place and takes it whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.process.drafted import drafted


def test_a_reader_finds_what_was_there_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    path.write_text("old")
    with drafted(path) as draft:
        draft.write_text("half")
        assert path.read_text() == "old"
        draft.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writes", [True, False])
def test_what_fails_leaves_all_as_it_was(tmp_path: Path, writes: bool) -> None:
    path = tmp_path / "ü.txt"
    path.write_text("old")

    def fail() -> None:
        with drafted(path) as draft:
            if writes:
                draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), drafted(tmp_path / "none" / "file") as draft:
        draft.write_text("x")
    assert list(tmp_path.iterdir()) == []
