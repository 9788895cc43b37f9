"""Instances in SWE-bench's format: generated, worked on through a real session server, judged by their own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import swe_bench
from make_swe_bench import make_instances
from prompts import SUBMIT, reply

from miles_lite.errors import UserError
from tests.examples.episodes import play
from tests.sandboxes.kinds import needs_bwrap

KINDS = ["local", pytest.param("bwrap", marks=needs_bwrap)]


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two instances, as rows' metadata."""
    folder = tmp_path_factory.mktemp("swe")
    made = make_instances(folder, count=2, seed=0)
    return [row["metadata"] for row in swe_bench.prompts(made, folder / "repos")]


@pytest.fixture(autouse=True)
def _this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's python3 may have no pytest; ours has."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_the_format_is_swe_benchs(instances: list[dict[str, Any]]) -> None:
    for instance in instances:
        assert set(swe_bench.FIELDS) <= set(instance)
        assert len(instance["base_commit"]) == 40
        assert json.loads(instance["FAIL_TO_PASS"])[0].endswith("::test_it")
        assert swe_bench.files_of(instance["patch"]) != swe_bench.files_of(instance["test_patch"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_patch_resolves_and_less_does_not(
    instances: list[dict[str, Any]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWE_EXECUTOR", kind)
    instance = instances[0]
    verdict = swe_bench.judge(instance, instance["patch"])
    assert verdict.resolved
    untouched = swe_bench.judge(instance, _comment(instance))
    assert (list(untouched.fail_to_pass.values()), list(untouched.pass_to_pass.values())) == ([False], [True])
    assert not untouched.resolved


def test_a_fix_that_breaks_something_else_does_not_resolve(instances: list[dict[str, Any]]) -> None:
    instance = instances[0]
    with swe_bench.checkout(instance) as copy:
        assert copy.apply(instance["patch"])
        healthy = swe_bench.files_of(instance["test_patch"])
        for file in copy.folder.glob("*.py"):
            if file.name not in swe_bench.files_of(instance["patch"]) and file.name not in healthy:
                file.write_text("raise ValueError\n")
        verdict = swe_bench.judge(instance, copy.patch())
    assert list(verdict.fail_to_pass.values()) == [True]
    assert list(verdict.pass_to_pass.values()) == [False]
    assert not verdict.resolved


def test_a_patch_that_does_not_apply_or_edits_the_tests_passes_nothing_it_should_not(
    instances: list[dict[str, Any]],
) -> None:
    instance = instances[0]
    nonsense = swe_bench.judge(instance, "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n")
    assert not any([*nonsense.fail_to_pass.values(), *nonsense.pass_to_pass.values()])
    with swe_bench.checkout(instance) as copy:
        for file in swe_bench.files_of(instance["test_patch"]):
            (copy.folder / file).write_text("def test_it():\n    pass\n")
        forged = copy.patch()
    assert not swe_bench.judge(instance, forged).resolved


def test_the_agent_sees_one_commit_and_its_git_settings_are_not_ours(
    instances: list[dict[str, Any]], tmp_path: Path
) -> None:
    mine = tmp_path / "ran"
    with swe_bench.checkout(instances[0]) as copy, swe_bench.sandbox(instances[0], copy) as lease:
        box = lease.sandbox
        assert box.run("git log --all --oneline | wc -l", seconds=20).stdout == "1\n"
        assert box.run("git status --porcelain", seconds=20).stdout == ""
        assert box.run('[ "$(git rev-parse --show-toplevel)" = "$(pwd -P)" ]', seconds=20).exit_code == 0
        settings = f"git config filter.x.clean 'touch {mine}; cat'; git config core.fsmonitor 'touch {mine}'"
        box.run(f"{settings}; echo '* filter=x' > .gitattributes; echo 1 > new.py; rm -rf {mine}", seconds=20)
        copy.take(box)
        assert "new.py" in copy.patch()
        assert not mine.exists()


def test_links_that_an_agent_makes_are_in_its_patch_and_lead_nowhere(instances: list[dict[str, Any]]) -> None:
    with swe_bench.checkout(instances[0]) as copy, swe_bench.sandbox(instances[0], copy) as lease:
        lease.sandbox.run("ln -s /etc/passwd link; ln -s / root; mkfifo pipe; ln -s .. up", seconds=20)
        copy.take(lease.sandbox)
        patch = copy.patch()
    assert "+/etc/passwd" in patch
    assert "root:" not in patch
    assert "pipe" not in patch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("right", [True, False])
def test_an_episode_is_rewarded_when_the_instance_is_resolved(
    tiny_model: Path,
    instances: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    right: bool,
) -> None:
    monkeypatch.setenv("SWE_EXECUTOR", kind)
    instance = instances[1]
    patch = instance["patch"] if right else _comment(instance)
    replies = [reply("look", "cat *.py; id"), reply("edit", f"git apply <<'EOF'\n{patch}EOF"), reply("done", SUBMIT)]
    result = _episode(tiny_model, instance, replies)
    assert (result["exit_status"], result["turns"]) == ("Submitted", 3)
    assert (result["reward"], result["fail_to_pass"], result["pass_to_pass"]) == (float(right), float(right), 1.0)


def test_an_agent_that_changes_nothing_is_not_judged(tiny_model: Path, instances: list[dict[str, Any]]) -> None:
    result = _episode(tiny_model, instances[0], [reply("done", SUBMIT)])
    assert (result["reward"], result["exit_status"], result["fail_to_pass"]) == (0.0, "Submitted", 0.0)


def test_a_missing_field_or_repository_is_named(instances: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instance 1: it has no base_commit"):
        swe_bench.prompts([{k: v for k, v in instances[0].items() if k != "base_commit"}], tmp_path)
    with pytest.raises(UserError, match=r"no repository at .*; clone example/"):
        swe_bench.prompts(instances, tmp_path)


def test_an_executor_that_does_not_exist_is_the_users_mistake(
    instances: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWE_EXECUTOR", "dokcer")
    with pytest.raises(UserError, match=r"no sandboxes of 'dokcer'.*docker"):
        swe_bench.judge(instances[0], instances[0]["patch"])


def test_containers_have_swe_benchs_image(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sweb.eval.x86_64.astropy_1776_astropy-12907"
    assert swe_bench.image_of("astropy__astropy-12907", "docker") == f"swebench/{name}:latest"
    assert swe_bench.image_of("astropy__astropy-12907", "apptainer") == f"docker://swebench/{name}:latest"
    monkeypatch.setenv("SWE_IMAGES", "/images")
    assert swe_bench.image_of("astropy__astropy-12907", "apptainer") == f"/images/{name}.sif"


def test_the_command_line_writes_prompts(instances: list[dict[str, Any]], tmp_path: Path) -> None:
    example = Path(swe_bench.__file__).parent
    argv = [sys.executable, "make_swe_bench.py", "--out", str(tmp_path / "swe"), "--count", "2"]
    subprocess.run(argv, cwd=example, check=True, capture_output=True, timeout=60)
    argv = [sys.executable, "swe_bench.py", "--instances", str(tmp_path / "swe" / "instances.jsonl")]
    argv += ["--repos", str(tmp_path / "swe" / "repos"), "--out", str(tmp_path / "out.jsonl")]
    subprocess.run(argv, cwd=example, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "swe" / "prompts.jsonl").read_text()
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert row["metadata"]["base_commit"] == instances[0]["base_commit"]  # the same seed makes the same commits
    shutil.rmtree(tmp_path / "swe")


def _comment(instance: dict[str, Any]) -> str:
    """A patch that changes nothing that matters."""
    with swe_bench.checkout(instance) as copy:
        (file,) = swe_bench.files_of(instance["patch"])
        with (copy.folder / file).open("a") as stream:
            stream.write("# looked at\n")
        return str(copy.patch())


def _episode(model: Path, instance: dict[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    row = {"input": instance["problem_statement"], "metadata": instance}
    return play(model, swe_bench.run, row, replies).result
