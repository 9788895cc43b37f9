from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

from miles_lite.process.fork_server_main import run


def test_a_module_that_the_server_imported_is_run_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, told = tmp_path / "preloaded", tmp_path / "told"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ran.py").write_text(
        "import pathlib, sys\nif __name__ == '__main__':\n    pathlib.Path(sys.argv[1]).write_text(__name__)\n"
    )
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("preloaded", "preloaded.ran"):  # and without them again in the end
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    importlib.import_module("preloaded.ran")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert run(["-m", "preloaded.ran", str(told)]) == 0
    assert told.read_text() == "__main__"
