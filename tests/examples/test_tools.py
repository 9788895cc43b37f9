"""The example's tools on its tasks, run as `miles-lite agent` runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bugs import BUGS
from make_tasks import make_tasks

from miles_lite.agent.tools import load_tools
from miles_lite.sandboxes.shell import Outcome, Shell

TOOLS = {tool.name: tool for tool in load_tools(Path(__file__).parents[2] / "examples" / "swe-agent" / "tools.json")}


@pytest.mark.parametrize(
    "task", make_tasks("heldout", count=len(BUGS), seed=0), ids=lambda task: task["metadata"]["bug"]
)
def test_the_tools_find_and_fix_a_bug(task: dict[str, Any], tmp_path: Path) -> None:
    bug = next(bug for bug in BUGS if bug.name == task["metadata"]["bug"])
    ((path, source),) = task["metadata"]["files"].items()
    (tmp_path / path).write_text(source)
    hidden = task["metadata"]["hidden_tests"]
    with Shell(folder=tmp_path) as shell:
        use = caller(shell)
        assert use("read_file", path=path).stdout == source
        assert use("grep_repo", pattern=bug.suspect.replace("[", r"\[")).stdout.startswith(f"./{path}:")
        assert use("grep_repo", pattern="nosuchtext").exit_code == 1
        assert use("run_test", source=hidden).exit_code != 0
        assert use("replace_text", path=path, old="nosuchtext", new="").stderr == "the text occurs 0 times\n"
        assert use("replace_text", path=path, old=bug.wrong, new=bug.right).exit_code == 0
        assert use("run_test", source=hidden).exit_code == 0
    assert (tmp_path / path).read_text() == source.replace(bug.wrong, bug.right)


def test_a_value_that_looks_like_an_option_or_a_script_is_neither(tmp_path: Path) -> None:
    with Shell(folder=tmp_path) as shell:
        use = caller(shell)
        assert use("read_file", path="--version").exit_code == 1
        assert use("grep_repo", pattern="--version").exit_code == 1
        assert use("read_file", path="$(touch made); touch made").exit_code == 1
        assert use("run_test", source="import os; os.write(1, b'\\'$HOME`id`')").stdout == "'$HOME`id`"
    assert not list(tmp_path.iterdir())


def caller(shell: Shell) -> Callable[..., Outcome]:
    def use(name: str, **arguments: str) -> Outcome:
        assert TOOLS[name].problem(arguments) is None
        return shell.run(TOOLS[name].script(arguments))

    return use
