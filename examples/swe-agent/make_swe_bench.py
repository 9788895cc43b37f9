"""Make instances in SWE-bench's format, and the repositories they are about.

    python make_swe_bench.py --out data/swe --count 12 --seed 0

A repository has two modules, one with a planted bug (bugs.py), and two commits: the bug, then its fix and the tests.

Invariant: with the patch all tests of an instance pass; without it those of FAIL_TO_PASS fail and those of PASS_TO_PASS
pass. The folder, commit ids included, depends on the seed alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from bugs import BUGS
from make_tasks import make_tasks, write_jsonl
from swe_bench import TEST_COMMAND, prompts

DATE = "2026-01-01T00:00:00Z"
OWNER = "example"


def make_instances(out: Path, *, count: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Write `count` repositories under `out`/repos; the instances."""
    rows = make_tasks(split, count=2 * count, seed=seed)
    return [_instance(out / "repos", rows[number], rows[count + number]) for number in range(count)]


def _instance(repos: Path, broken: dict[str, Any], healthy: dict[str, Any]) -> dict[str, Any]:
    ((path, source),) = broken["metadata"]["files"].items()
    ((other_path, other_source),) = healthy["metadata"]["files"].items()
    name = Path(path).stem
    folder = repos / f"{OWNER}__{name}"
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main", "--template=")
    base = _commit(folder, {path: source, other_path: _repaired(healthy, other_source)}, "Start")
    tests = {f"test_{Path(file).stem}.py": _tests(row) for file, row in ((path, broken), (other_path, healthy))}
    fix = _commit(folder, {path: _repaired(broken, source), **tests}, "Fix")
    fails, passes = (f"{file}::test_it" for file in tests)
    return {
        "instance_id": f"{OWNER}__{name}-1",
        "repo": f"{OWNER}/{name}",
        "base_commit": base,
        "patch": git(folder, "diff", base, fix, "--", path),
        "test_patch": git(folder, "diff", base, fix, "--", *tests),
        "problem_statement": broken["input"],
        "hints_text": "",
        "created_at": DATE,
        "version": "1",
        "environment_setup_commit": base,
        "FAIL_TO_PASS": f'["{fails}"]',
        "PASS_TO_PASS": f'["{passes}"]',
        "test_cmd": f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {TEST_COMMAND}",
    }


def _repaired(row: dict[str, Any], source: str) -> str:
    bug = next(bug for bug in BUGS if bug.name == row["metadata"]["bug"])
    return source.replace(bug.wrong, bug.right)


def _tests(row: dict[str, Any]) -> str:
    """The hidden tests as one pytest function."""
    first, *asserts = row["metadata"]["hidden_tests"].splitlines()
    return "\n".join([first, "", "", "def test_it():", *(f"    {line}" for line in asserts), ""])


def _commit(folder: Path, files: dict[str, str], message: str) -> str:
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


def git(folder: Path, *arguments: str) -> str:
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{who}_{what}": "dev" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env |= {"GIT_AUTHOR_DATE": DATE, "GIT_COMMITTER_DATE": DATE}
    argv = ["git", *arguments]
    return subprocess.run(argv, cwd=folder, env=env, check=True, capture_output=True, text=True, timeout=60).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for instances.jsonl, prompts.jsonl and repos/")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    instances = make_instances(given.out, count=given.count, seed=given.seed)
    write_jsonl(given.out / "instances.jsonl", instances)
    write_jsonl(given.out / "prompts.jsonl", prompts(instances, given.out / "repos"))
    print(f"{given.out}: {len(instances)} instances, and rows for --prompt-data in prompts.jsonl")


if __name__ == "__main__":
    main()
