"""Instances in SWE-bench's format: an agent works on the repository, fail-to-pass and pass-to-pass tests decide.

    python swe_bench.py --instances swe.jsonl --repos repos/ --out prompts.jsonl
    --prompt-data prompts.jsonl --custom-agent-function-path examples/swe-agent/swe_bench.py:run

`repos/` holds a git repository per `repo` of the instances, `OWNER__NAME` for OWNER/NAME.

    SWE_EXECUTOR   where commands run: local, bwrap, docker, podman, apptainer, or the URL of a machine that serves
                   sandboxes (docs/sandboxes.md)
    SWE_IMAGES     folder of .sif files for Apptainer

Invariant: the agent sees one commit of the repository and nothing after it; its work is a patch, which is judged in
another checkout with the instance's own test files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import AGENTS, SUBMITTED, Model, opening, work
from make_tasks import write_jsonl
from prompts import observation

from miles_lite.agent.session_client import ContextFull
from miles_lite.errors import UserError
from miles_lite.sandboxes import pool
from miles_lite.sandboxes.files import get, pull, push
from miles_lite.sandboxes.lending import Lease
from miles_lite.sandboxes.sandbox import Sandbox

TESTBED = "/testbed"
"""Where SWE-bench's images have the repository."""
STEP_LIMIT = 30
COMMAND_SECONDS = 60.0
TEST_SECONDS = 600.0
GIT_SECONDS = 300.0
FIELDS = ("instance_id", "repo", "base_commit", "problem_statement", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS")
TEST_COMMAND = "python3 -B -m pytest -rA -q --tb=no -p no:cacheprovider --continue-on-collection-errors"
"""What runs an instance's test files, unless its `test_cmd` says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which of the tests that must pass did. `resolved` needs all of both kinds."""

    fail_to_pass: dict[str, bool]
    pass_to_pass: dict[str, bool]

    @property
    def resolved(self) -> bool:
        return all([*self.fail_to_pass.values(), *self.pass_to_pass.values()])


async def run(
    base_url: str,
    prompt: Any,
    request_kwargs: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    api_key: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """One episode. `metadata` is an instance with `repository`, the git repository's folder. Reward 1 when resolved."""
    join = partial(Model.joining, base_url, api_key=api_key, request=request_kwargs)
    return await asyncio.get_running_loop().run_in_executor(AGENTS, episode, join, dict(metadata))


def episode(join: Callable[[], Model], instance: Mapping[str, Any]) -> dict[str, Any]:
    with join() as model, checkout(instance) as copy:
        began = time.perf_counter()
        with sandbox(instance, copy) as lease:
            try:
                task = opening(str(instance["problem_statement"]))
                exit_status = work(task, model.chat, partial(act, lease.sandbox), limit=STEP_LIMIT)
            except ContextFull:
                exit_status = "ContextWindowExceeded"
            copy.take(lease.sandbox)
        acted = time.perf_counter() - began - model.seconds
        patch = copy.patch()
        start = time.perf_counter()
        verdict = judge(instance, patch) if exit_status == SUBMITTED and patch else None
        return {
            "reward": float(verdict is not None and verdict.resolved),
            "exit_status": exit_status,
            "turns": model.turns,
            "model_query_time": model.seconds,
            "env_execution_time": acted,
            "eval_time": time.perf_counter() - start,
            "fail_to_pass": _share(verdict.fail_to_pass) if verdict else 0.0,
            "pass_to_pass": _share(verdict.pass_to_pass) if verdict else 0.0,
            **lease.report,
        }


@contextlib.contextmanager
def sandbox(instance: Mapping[str, Any], copy: Checkout) -> Iterator[Lease]:
    """Where commands run on what a checkout holds. Raises UserError for a SWE_EXECUTOR that there is not."""
    kind = os.environ.get("SWE_EXECUTOR", "local")
    with pool(kind).open(image_of(instance["instance_id"], kind), workdir=TESTBED) as lease:
        push(lease.sandbox, copy.folder)
        yield lease


def image_of(instance_id: str, kind: str) -> str:
    """SWE-bench's evaluation image of an instance: by name, for Apptainer by its file in SWE_IMAGES or its address."""
    name = f"sweb.eval.x86_64.{instance_id.lower().replace('__', '_1776_')}"
    if kind != "apptainer":
        return f"swebench/{name}:latest"
    images = os.environ.get("SWE_IMAGES")
    return str(Path(images, f"{name}.sif")) if images else f"docker://swebench/{name}:latest"


def act(sandbox: Sandbox, command: str) -> tuple[str, int]:
    """(what the agent is shown, the exit code) of a command."""
    outcome = sandbox.run(command, seconds=COMMAND_SECONDS)
    return observation(outcome.stdout + outcome.stderr, outcome.exit_code), outcome.exit_code


def judge(instance: Mapping[str, Any], patch: str) -> Verdict:
    """Apply a patch and the instance's test files to a fresh checkout, and run the tests. A patch that does not apply
    passes nothing."""
    wanted = {name: tests_of(instance, name) for name in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    with checkout(instance) as copy:
        passed = _passed(instance, copy) if copy.apply(patch) else set()
    fail, keep = ({test: test in passed for test in wanted[name]} for name in ("FAIL_TO_PASS", "PASS_TO_PASS"))
    return Verdict(fail_to_pass=fail, pass_to_pass=keep)


def _passed(instance: Mapping[str, Any], copy: Checkout) -> set[str]:
    """The tests that pass in a patched checkout, whose test files are the instance's own."""
    files = files_of(instance["test_patch"])
    copy.restore(files)
    if not copy.apply(str(instance["test_patch"])):
        raise UserError(f"{instance['instance_id']}: its test_patch does not apply to {instance['base_commit']}")
    report = f".report-{secrets.token_hex(8)}"  # longer than what is kept of output
    command = f"{instance.get('test_cmd', TEST_COMMAND)} {shlex.join(files)} > {report} 2>&1"
    with sandbox(instance, copy) as lease:
        lease.sandbox.run(command, seconds=TEST_SECONDS)
        try:
            said = get(lease.sandbox, report)
        except FileNotFoundError:
            return set()
    return passed_tests(said.decode(errors="replace"))


def passed_tests(report: str) -> set[str]:
    """The names after PASSED in pytest's `-rA` summary."""
    return {line.split(" ", 1)[1].split(" - ")[0].strip() for line in report.splitlines() if line.startswith("PASSED ")}


def tests_of(instance: Mapping[str, Any], name: str) -> list[str]:
    """FAIL_TO_PASS or PASS_TO_PASS: a list, or its JSON text as in the published files."""
    value = instance[name]
    return list(json.loads(value) if isinstance(value, str) else value)


def files_of(patch: str) -> list[str]:
    """The files that a patch leaves behind."""
    return [line[6:] for line in patch.splitlines() if line.startswith("+++ b/")]


@dataclass(frozen=True, slots=True)
class Checkout:
    """The base commit in `folder`, which has a repository of its own for the agent to use. What is asked of git here
    goes to `store`, a repository that nothing of the agent's can reach: settings that it left are never read."""

    folder: Path
    store: Path

    def take(self, sandbox: Sandbox) -> None:
        """Become what a sandbox has made of it; what it did to its own repository stays there."""
        for each in self.folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        pull(sandbox, self.folder, leave=lambda path: path.parts[:1] == (".git",))

    def patch(self) -> str:
        """What changed since the base commit, files made since included."""
        self.git("add", "-A")
        return self.git("diff", "--cached", "--binary", "--ignore-submodules=all", "HEAD")

    def apply(self, patch: str) -> bool:
        return self._run("apply", "--whitespace=nowarn", "-", text=patch).returncode == 0

    def restore(self, files: Sequence[str]) -> None:
        """Bring files to what they are in the base commit; those that it has not are removed."""
        for file in files:
            if self.git("ls-tree", "--name-only", "HEAD", "--", file):
                self.git("checkout", "-q", "HEAD", "--", file)
            else:
                (self.folder / file).unlink(missing_ok=True)

    def git(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode:
            raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        argv = ["git", f"--git-dir={self.store}", f"--work-tree={self.folder}", *arguments]
        options: dict[str, Any] = {"cwd": self.folder, "env": env, "timeout": GIT_SECONDS, "check": False}
        return subprocess.run(argv, input=text, capture_output=True, encoding="utf-8", errors="replace", **options)


@contextlib.contextmanager
def checkout(instance: Mapping[str, Any]) -> Iterator[Checkout]:
    """A throw-away checkout that holds the base commit alone: no later one, no other branch. Removed at the end."""
    with tempfile.TemporaryDirectory(prefix="swe-bench-", ignore_cleanup_errors=True) as scratch:
        made = Checkout(Path(scratch, "repository"), Path(scratch, "store"))
        made.folder.mkdir()
        made.git("init", "-q", "--template=")
        source = f"file://{instance['repository']}"
        made.git("-c", "protocol.file.allow=always", "fetch", "-q", "--depth=1", source, str(instance["base_commit"]))
        made.git("checkout", "-q", "-B", "main", "FETCH_HEAD")
        shutil.copytree(made.store, made.folder / ".git")
        made.git("config", "--file", str(made.folder / ".git" / "config"), "--unset", "core.worktree")
        yield made


def prompts(instances: Sequence[Mapping[str, Any]], repos: Path) -> list[dict[str, Any]]:
    """Rows for --prompt-data. Raises UserError for an instance without a field or a repository."""
    rows = []
    for number, instance in enumerate(instances, 1):
        missing = [field for field in FIELDS if field not in instance]
        if missing:
            raise UserError(f"instance {number}: it has no {', '.join(missing)}")
        repository = (repos / str(instance["repo"]).replace("/", "__")).resolve()
        if not repository.is_dir():
            raise UserError(f"{instance['instance_id']}: no repository at {repository}; clone {instance['repo']} there")
        rows.append({"input": instance["problem_statement"], "metadata": {**instance, "repository": str(repository)}})
    return rows


def _share(tests: Mapping[str, bool]) -> float:
    return sum(tests.values()) / len(tests) if tests else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, required=True, help="JSONL in SWE-bench's format")
    parser.add_argument("--repos", type=Path, required=True, help="folder of git repositories")
    parser.add_argument("--out", type=Path, required=True, help="JSONL for --prompt-data")
    given = parser.parse_args()
    instances = [json.loads(line) for line in given.instances.read_text(encoding="utf-8").splitlines()]
    try:
        rows = prompts(instances, given.repos)
    except UserError as error:
        parser.error(str(error))
    write_jsonl(given.out, rows)
    print(f"{given.out}: {len(rows)} instances")


if __name__ == "__main__":
    main()
