from __future__ import annotations

import json
from pathlib import Path

from miles_lite.rollout.failures import note_failures
from miles_lite.sample import Group, Rollout, Status


def test_each_failure_leaves_a_line_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    bad = Rollout(7, 1, status=Status.FAILED, error="ValueError", metadata={"error_detail": "embedded null byte"})
    note_failures(path, 3, [Group(index=1, prompt={"row": 12}, rollouts=[Rollout(6, 1), bad])])
    note_failures(path, 4, [Group(index=2, prompt={}, rollouts=[Rollout(8, 2)])])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line == {
        "rollout/step": 3,
        "rollout": 7,
        "prompt_row": 12,
        "status": "failed",
        "error": "ValueError",
        "detail": "embedded null byte",
    }
