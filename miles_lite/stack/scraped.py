"""Where Prometheus finds a stack's own pages: `logs/scrape.json` in the run folder, in the form of `file_sd_configs`.

Invariant: whoever reads it finds a whole file. Ray's nodes are not in it: Ray writes a file of that form itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from miles_lite.process.drafted import drafted

FILE = Path("logs", "scrape.json")


def write_targets(run_dir: Path, *, routers: Sequence[str], sessions: Sequence[str]) -> None:
    """Of the `/metrics` of these URLs, with the run's name and what each is as labels. Raises OSError."""
    told = [
        {"targets": [urlsplit(url).netloc for url in urls], "labels": {"run": run_dir.name, "part": part}}
        for part, urls in (("router", routers), ("session", sessions))
        if urls
    ]
    with drafted(run_dir / FILE) as draft:
        draft.write_text(json.dumps(told, indent=1))
