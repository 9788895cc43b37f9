#!/usr/bin/env python3
"""The published name of `miles-lite verify template`: same flags, same output, same exit code."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from miles_lite.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", "template", *sys.argv[1:]]))
