"""Tasks: the same in each process and after a restart; what is wrong with a flag is said before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.environments import arguments
from miles_lite.config.options import parse
from miles_lite.environments.tasks import Tasks
from miles_lite.errors import RolloutError, UserError
from miles_lite.rollout.prompts import open_source
from tests.environments.played import FLAGS

MINE = """
from miles_lite.environments import single_turn


class Sums:
    reward = None
    agent = staticmethod(single_turn.run)

    def __init__(self, size, seed):
        self.size, self.seed = size, seed

    def rows(self, split):
        return [{"prompt": f"{split} {self.seed} {at}", "label": at, "metadata": {"at": at}} for at in range(self.size)]


def make(argument, args, /, *, seed):
    return Sums(int(argument) + args.get("more", 0), seed)
"""


@given(st.integers(0, 2**40), st.sampled_from(["train", "test", "x"]), st.integers(0, 10**9))
def test_a_task_is_its_split_its_place_and_the_seed(seed: int, split: str, place: int) -> None:
    tasks, again = (Tasks("a b:c", lambda split: 10**9 + 1, seed) for _ in range(2))
    row = tasks.rows(split)[place]
    task = again.of(json.loads(json.dumps(row["metadata"])))
    assert task == tasks.task(split, place)
    assert (task.label, task.split, task.place) == ("a_b_c", split, place)
    assert 0 <= task.seed < 2**31
    seeds = {tasks.task(other, place + each).seed for other in ("train", "test", "x") for each in (0, 1)}
    assert len(seeds) == 6


def test_a_row_of_another_source_is_no_task() -> None:
    with pytest.raises(RolloutError, match="its metadata has no task"):
        Tasks("a", len, 0).of({"x": 1})


def test_an_environment_of_ones_own_deals_prompts_as_a_file_does_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    flags = [*FLAGS, "--environment", f"{file}:make:5", "--environment-args", "{more: 2}", "--rollout-seed", "9"]
    data = parse([*flags, "--rollout-shuffle"])[0].data
    source = open_source(data)
    assert len(source) == 7
    first = [source.take() for _ in range(10)]
    state = json.loads(json.dumps(source.state()))
    then = [source.take() for _ in range(10)]
    resumed = open_source(data)
    resumed.restore(state)
    assert [resumed.take() for _ in range(10)] == then
    assert sorted(first[:7]) == list(range(7))
    prompt = resumed.prompts[3]
    assert (prompt.input, prompt.label, prompt.metadata) == ("train 9 3", 3, {"at": 3})
    held_out = parse([*flags, "--prompt-data", "environment:train@[:2]=1,environment:test@[2:4]=3"])[0].data
    dealt = [each.input for each in open_source(held_out).prompts]
    assert dealt == ["train 9 0", "train 9 1", "test 9 2", "test 9 3"]
    with pytest.raises(UserError, match="7 prompts, --prompt-data now has 4"):
        open_source(parse([*flags, "--prompt-data", "environment:train@[:4]"])[0].data).restore(state)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "prompts are missing: give --prompt-data FILE, or --environment"),
        (["--environment", "gen:x"], "--environment gen: not known: did you mean gem"),
        (
            ["--prompt-data", "p", "--eval-prompt-data", "h", "environment:test", "--eval-interval", "1"],
            "set h is of an",
        ),
        (
            ["--environment", "gem:x", "--custom-agent-function-path", "a.b"],
            "--environment and --custom-agent-function",
        ),
        (["--environment", "gem:x", "--environment-args", "[1]"], "--environment-args: expected an object"),
        (["--environment", "gem:x", "--environment-args", "{a: "], "--environment-args: neither JSON nor YAML"),
        (["--environment", "gem:x", "--environment-args", "no.yaml"], "--environment-args no.yaml: cannot be read"),
        (["--environment", "openenv:x", "--environment-args", "{acton: a}"], "no 'acton'; there are action, "),
        (["--environment", "openenv:x"], "openenv:x: give the server's URL"),
        (["--environment", "openenv:http://127.0.0.1:9"], "no server of OpenEnv answers there: "),
        (["--environment", "no/such/file.py:make"], "--environment: no such file: "),
    ],
)
def test_what_is_wrong_is_said(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(parse([*FLAGS, *flags])[0].data)


def test_an_environment_that_answers_as_the_user_may_append_as_the_user() -> None:
    def roles(*flags: str) -> Any:
        return parse([*FLAGS, *flags])[0].session.tito_allowed_append_roles

    assert roles("--environment", "gem:x") == ("tool", "user")
    assert roles("--environment", "ors:x") == ("tool",)
    assert roles("--environment", "gem:x", "--tito-allowed-append-roles", "user") == ("user",)


def test_arguments_are_json_yaml_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("max_turns: 3\n")
    assert arguments('{"max_turns": 3}') == arguments("{max_turns: 3}") == arguments(str(file)) == {"max_turns": 3}
    assert arguments(None) == {}


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lacking.py"
    file.write_text("def make(argument, args, /, *, seed):\n    import no_such_package\n")
    with pytest.raises(UserError, match=r"lacking.py:make: needs no_such_package: pip install no_such_package"):
        open_source(parse([*FLAGS, "--environment", f"{file}:make"])[0].data)
