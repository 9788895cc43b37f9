"""Where Prometheus finds a run's servers."""

from __future__ import annotations

import json
from pathlib import Path

from miles_lite.stack.scraped import FILE, write_targets


def test_routers_and_sessions_are_named_by_run_and_part(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    write_targets(tmp_path, routers=["http://127.0.0.1:1", "http://[::1]:2"], sessions=["http://node:3"])
    routers, sessions = json.loads((tmp_path / FILE).read_text())
    assert routers == {"targets": ["127.0.0.1:1", "[::1]:2"], "labels": {"run": tmp_path.name, "part": "router"}}
    assert sessions == {"targets": ["node:3"], "labels": {"run": tmp_path.name, "part": "session"}}
    write_targets(tmp_path, routers=[], sessions=["http://node:3"])
    assert [one["labels"]["part"] for one in json.loads((tmp_path / FILE).read_text())] == ["session"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [FILE.name]
