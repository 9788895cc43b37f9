from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = """
import importlib, sys, warnings
from miles_lite.process.fork_server_main import run

sys.path.insert(0, sys.argv[1])
importlib.import_module("preloaded.ran")
warnings.simplefilter("error", RuntimeWarning)
assert run(["-m", "preloaded.ran", sys.argv[2]]) == 0
"""


def test_a_module_that_the_server_imported_is_run_without_a_warning(tmp_path: Path) -> None:
    package, told = tmp_path / "preloaded", tmp_path / "told"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "ran.py").write_text(
        "import pathlib, sys\nif __name__ == '__main__':\n    pathlib.Path(sys.argv[1]).write_text(__name__)\n"
    )
    subprocess.run([sys.executable, "-c", RUNS, str(tmp_path), str(told)], check=True, timeout=60)
    assert told.read_text() == "__main__"
