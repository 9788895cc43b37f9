from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.hooks import load_hook
from miles_lite.rollout.filters import check_no_aborted


def test_dotted_paths_and_files_resolve(tmp_path: Path) -> None:
    assert load_hook("miles_lite.rollout.filters.check_no_aborted", flag="--f") is check_no_aborted
    assert load_hook("miles_lite.rollout.filters:check_no_aborted", flag="--f") is check_no_aborted
    (tmp_path / "helper.py").write_text("VALUE = 41\n")
    (tmp_path / "hook.py").write_text("from helper import VALUE\ndef run():\n    return VALUE + 1\n")
    assert load_hook(f"{tmp_path}/hook.py:run", flag="--f")() == 42


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nodots", "expected package.module.name"),
        ("no_such_package.module.name", "cannot import no_such_package"),
        ("miles_lite.rollout.filters.nothing", "no callable named 'nothing'"),
        ("/no/such/file.py:run", "no such file"),
    ],
)
def test_a_hook_that_does_not_exist_names_its_flag(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_hook(path, flag="--custom-rm-path")
    assert "--custom-rm-path" in str(caught.value)
