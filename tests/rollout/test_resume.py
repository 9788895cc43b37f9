"""A file that rollouts cannot go on from is named, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from miles_lite.errors import UserError
from miles_lite.rollout.resume import load
from miles_lite.train.checkpoint import LATEST, latest_iteration


@pytest.mark.parametrize(
    "held", [b"", b"{", b"\xff\xfe", b"\x00", b"null", b"[]", b'{"data": {}}', b'{"data": {}, "members": {}']
)
def test_a_damaged_state_of_rollouts(held: bytes, tmp_path: Path) -> None:
    (tmp_path / "rollout").mkdir()
    (tmp_path / "rollout" / "global_dataset_state_dict_3.json").write_bytes(held)
    with pytest.raises(UserError, match=r"--load .*: global_dataset_state_dict_3.json is damaged"):
        load(str(tmp_path), 3, cast(Any, None), cast(Any, None))
    with pytest.raises(UserError, match=r"global_dataset_state_dict_4.json is missing"):
        load(str(tmp_path), 4, cast(Any, None), cast(Any, None))


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", b"-1", b"9" * 400, b"1\n2", "\u0663".encode(), b"\x00", b"7.0"])
def test_a_marker_that_names_no_iteration(held: bytes, tmp_path: Path) -> None:
    (tmp_path / LATEST).write_bytes(held)
    with pytest.raises(UserError, match="expected an iteration number"):
        latest_iteration(tmp_path)
