"""What a run's driver imports before it starts anything."""

from __future__ import annotations

import subprocess
import sys

DRIVER = "import sys, miles_lite.commands.train; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"


def test_the_driver_imports_what_it_only_tells_others_to_use_neither_early_nor_by_accident() -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"
