"""Tasks of a terminal as folders: Harbor's and Terminal-Bench's, worked on in real sandboxes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from miles_lite.environments.terminal_task import read_task, tasks_of
from miles_lite.environments.terminal_work import reward_of
from miles_lite.errors import UserError, Where
from miles_lite.rollout.prompts import open_source
from tests.environments.played import Say, broken, given, play
from tests.sandboxes.kinds import IMAGE, kind_of, needs_bwrap

TOML = '[verifier]\ntimeout_sec = 20.0\nenv = {{ WANTED = "it\'s" }}\n[environment]\n{more}\n'
TEST = """cd "$PWD"
read said < answer.txt
[ "$said" = "$WANTED" ] && [ -f /tests/helper.txt ] && [ -f data/seed.txt ] && [ -f /etc/given/one ]
echo $(( ! $? )) > /logs/verifier/reward.txt
"""
DOCKERFILE = "FROM scratch\n# its place\nWORKDIR /work/here\nCOPY data data/\nCOPY one.txt \\\n  /etc2/given/one\n"


def harbor(folder: Path, *, more: str = "", test: str = TEST, dockerfile: str = DOCKERFILE) -> Path:
    (folder / "environment" / "data").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "task.toml").write_text(TOML.format(more=more))
    (folder / "instruction.md").write_text("Write it's into answer.txt.\n")
    (folder / "environment" / "Dockerfile").write_text(dockerfile)
    (folder / "environment" / "one.txt").write_text("1")
    (folder / "environment" / "data" / "seed.txt").write_text("7")
    (folder / "tests" / "test.sh").write_text(test.replace("/etc/given", "/etc2/given"))
    (folder / "tests" / "helper.txt").write_text("")
    return folder


def call(command: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'bash', 'arguments': {'command': command}})}\n</tool_call>"


def working(*commands: str) -> Say:
    return lambda turn, text: call(commands[turn]) if turn < len(commands) else "done"


BWRAP = {"sandbox": "bwrap"}


@needs_bwrap
def test_a_task_is_worked_on_and_its_tests_say_what_it_earned(tiny_model: Path, tmp_path: Path) -> None:
    config = given(f"harbor:{harbor(tmp_path / 'tasks' / 'one').parent}", BWRAP)
    assert len(open_source(config.data)) == 1
    asked: list[str] = []

    def say(turn: int, text: str) -> str | None:
        asked.append(text)
        return working("pwd; ls; ls /tests", 'echo "it\'s" > answer.txt')(turn, text)

    (rollout,) = play(tiny_model, config, say)
    assert (rollout.reward, rollout.failure) == (1.0, None)
    assert "Write it's into answer.txt." in asked[0]
    assert "/work/here" in asked[1]
    assert "data" in asked[1]
    assert "cannot access '/tests'" in asked[1]  # they come when the model is done
    assert "[exit code 0]" in asked[2]
    assert rollout.metadata["tool_calls"] == 2
    (wrong,) = play(tiny_model, config, working("echo no > answer.txt"))
    assert (wrong.reward, wrong.failure) == (0.0, None)


@needs_bwrap
def test_what_a_model_does_badly_is_answered_and_a_judge_without_a_verdict_is_a_failure(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = given(f"harbor:{harbor(tmp_path / 'a')}", {**BWRAP, "command_timeout": 1, "max_turns": 3})
    asked: list[str] = []

    def say(turn: int, text: str) -> str:
        asked.append(text)
        return call([3, "sleep 20", "rm -rf / --no-preserve-root 2>&-; mkdir /tests"][turn])

    (rollout,) = play(tiny_model, config, say)
    assert (rollout.reward, rollout.failure) == (0.0, None)
    assert "there is one tool, bash" in asked[1]
    assert "timed out after 1 s" in asked[2]
    (crowded,) = play(tiny_model, config, working("rm -rf /logs; touch /logs"))
    assert "no room for its tests" in broken(crowded)
    silent = given(f"harbor:{harbor(tmp_path / 'b', test='echo lost >&2; exit 3')}", BWRAP)
    (failed,) = play(tiny_model, silent, working())
    assert failed.reward is None
    assert failed.failure is not None
    assert failed.failure.where is Where.ENVIRONMENT
    assert "its tests left no reward: lost" in failed.failure.why


@needs_bwrap
def test_terminal_benchs_own_format(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "task.yaml").write_text("instruction: |-\n  Make it.\nmax_test_timeout_sec: 20\n")
    (tmp_path / "tests" / "test_it.sh").write_text("[ -f made ]\n")
    (tmp_path / "run-tests.sh").write_text("bash $TEST_DIR/test_it.sh\n")
    config = given(f"harbor:{tmp_path}", BWRAP)
    rewards = [play(tiny_model, config, working(command))[0].reward for command in ("touch made", "true")]
    assert rewards == [1.0, 0.0]


def test_in_a_container(tiny_model: Path, tmp_path: Path) -> None:
    """Built of its Dockerfile, and one that is there."""
    with kind_of("podman"):
        test = (
            'read said < answer.txt; [ "$said" = "$WANTED" ] && echo \'{"reward": 0.5}\' > /logs/verifier/reward.json'
        )
        harbor(tmp_path / "built", test=test, dockerfile=f"FROM {IMAGE}\nWORKDIR /app\nCOPY one.txt .\n")
        harbor(tmp_path / "there", more=f'docker_image = "{IMAGE}"', test=test, dockerfile="")
        config = given(f"harbor:{tmp_path}", {"sandbox": "podman"})
        try:
            played = play(tiny_model, config, working('echo "it\'s" > answer.txt'), tasks=2)
        finally:
            image = ["podman", "rmi", "--force", read_task(tmp_path / "built").tag]
            subprocess.run(image, capture_output=True, timeout=60, check=False)
        assert [(each.reward, each.failure) for each in played] == [(0.5, None)] * 2


def test_what_is_no_task_is_said_before_anything_starts(tmp_path: Path) -> None:
    def told(spec: str, args: dict[str, Any] | None = None) -> str:
        with pytest.raises(UserError) as error:
            open_source(given(f"harbor:{spec}", {**BWRAP, **(args or {})}).data)
        return str(error.value)

    good = harbor(tmp_path / "good")
    assert "no task in it" in told(str(tmp_path / "nothing"))
    assert "there are docker, podman, bwrap" in told(str(good), {"sandbox": "local"})
    assert "no 'sandbx'" in told(str(good), {"sandbx": "bwrap"})
    run = harbor(tmp_path / "run", dockerfile="FROM x\nRUN apt-get install -y gcc\n")
    assert "its Dockerfile has RUN, which needs a container" in told(str(run))
    copied = harbor(tmp_path / "copied", dockerfile="COPY ../../secret /x\n")
    assert "copies ../../secret, which is not in" in told(str(copied))
    for file, said, why in [
        ("task.toml", "[", "cannot be read"),
        ("task.toml", 'verifier = "x"', "its verifier is 'x' and no dict"),
        ("tests/test.sh", None, "it has no tests/test.sh"),
        ("instruction.md", None, "its instruction cannot be read"),
    ]:
        broken = harbor(tmp_path / f"broken-{why[:9]}-{file.replace('/', '-')}")
        (broken / file).unlink()
        if said is not None:
            (broken / file).write_text(said)
        assert why in told(str(broken))


@pytest.mark.parametrize(
    ("file", "said", "why"),
    [
        ("task.toml", '[verifier]\ntimeout_sec = "soon"', "the time limit of its tests is 'soon' and no number"),
        ("task.toml", "[verifier]\ntimeout_sec = nan", "the time limit of its tests is nan and no number"),
        ("task.toml", "[verifier]\ntimeout_sec = 0", "the time limit of its tests is 0 and no number"),
        ("task.toml", b"\xff", "cannot be read"),
        ("instruction.md", " \n", "its instruction says nothing"),
        ("instruction.md", b"\xff\xfe", "its instruction cannot be read"),
        ("instruction.md", Path("/etc/hostname"), "it has no instruction.md of its own"),
        ("instruction.md", "fifo", "it has no instruction.md"),
        ("tests/test.sh", Path("/etc/hostname"), "it has no tests/test.sh of its own"),
        ("environment/Dockerfile", b"\xff", "its Dockerfile cannot be read"),
        ("environment/Dockerfile", "WORKDIR /a/../../b", "its Dockerfile's WORKDIR /a/../../b must be written out"),
        ("environment/Dockerfile", "WORKDIR $HOME", "its Dockerfile's WORKDIR $HOME must be written out"),
        ("environment/Dockerfile", "COPY one.txt", "it takes a source and a target"),
        ("environment/Dockerfile", "COPY 'one.txt /x", "No closing quotation"),
        ("environment/Dockerfile", "COPY --from=build /x /y", "--from=build needs a container"),
        ("environment/Dockerfile", 'COPY ["one.txt"', "cannot be followed"),
        ("environment/Dockerfile", "COPY out /x", "copies out, which is not in"),
    ],
)
def test_a_malformed_task_says_what_of_it(tmp_path: Path, file: str, said: str | bytes | Path, why: str) -> None:
    path = harbor(tmp_path / "task") / file
    (tmp_path / "task" / "environment" / "out").symlink_to("/etc")
    path.unlink()
    if isinstance(said, Path):
        path.symlink_to(said)
    elif said == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(UserError) as error:
        open_source(given(f"harbor:{tmp_path}", BWRAP).data)
    assert why in str(error.value)


def test_a_dockerfile_is_followed_as_far_as_a_folder_can(tmp_path: Path) -> None:
    text = 'WORKDIR /a\nworkdir b\nCOPY ["one.txt", "/x y"]\nADD --chown=1 /data one.txt /to/'
    task = read_task(harbor(tmp_path / "task", dockerfile=text))
    one, data = (tmp_path / "task" / "environment" / name for name in ("one.txt", "data"))
    assert task.dockerfile.workdir("/app") == "/a/b"
    assert task.dockerfile.copies() == [(one, "/x y"), (data, "/to/"), (one, "/to/")]


@needs_bwrap
@pytest.mark.parametrize(
    ("test", "reward"),
    [
        ("head -c 5000000 /dev/zero | tee /dev/stderr; echo 1 > /logs/verifier/reward.txt", 1.0),
        ("echo 0.5 > /logs/verifier/reward.txt; sleep 600", 0.5),
        ("sleep 600 & setsid sleep 600 & echo 1 > /logs/verifier/reward.txt", 1.0),
        ("sleep 600", "timed out after 2 s"),
        ("mkfifo /logs/verifier/reward.json", "its tests left no reward"),
        ("head -c 9000 /dev/zero | tr '\\0' 1 > /logs/verifier/reward.txt", "Error"),
        ("ln -s /etc/hostname /logs/verifier/reward.txt", "Error"),
        ("echo Infinity > /logs/verifier/reward.txt", "finite number"),
        ("rm -rf /logs", "its tests left no reward"),
    ],
)
def test_tests_that_hang_or_say_too_much_are_bounded(
    tiny_model: Path, tmp_path: Path, test: str, reward: float | str
) -> None:
    """Whatever the model has left where they come."""
    folder = harbor(tmp_path / "task", test=test)
    (folder / "task.toml").write_text("[verifier]\ntimeout_sec = 2")
    config = given(f"harbor:{folder}", {**BWRAP, "command_timeout": 2})
    (rollout,) = play(tiny_model, config, working("ln -s / .miles-lite-brought; ln -s /usr /tests; touch /logs/x"))
    if isinstance(reward, float):
        assert (rollout.reward, rollout.failure) == (reward, None)
    else:
        assert reward in broken(rollout)


def test_splits_are_folders_and_tasks_have_an_order(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "test/c"):
        harbor(tmp_path / name)
    assert [each.folder.name for each in tasks_of(tmp_path / "train")] == ["a", "b"]
    one = given(f"harbor:{tmp_path}", BWRAP, "--eval-prompt-data", "held", "environment:test", "--eval-interval", "1")
    assert len(open_source(one.data)) == 2
    with pytest.raises(UserError, match="no split other"):
        open_source(given(f"harbor:{tmp_path}", BWRAP, "--prompt-data", "environment:other").data)
    before = read_task(tmp_path / "test" / "c").tag
    (tmp_path / "test" / "c" / "environment" / "one.txt").write_text("2")
    assert read_task(tmp_path / "test" / "c").tag != before


@pytest.mark.parametrize("said", ["x", "{}", "true", '{"a": 1, "b": 2}', '{"reward": "1"}', "[1]"])
def test_a_reward_that_is_no_number_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        reward_of(said)


def test_a_reward_is_a_number_or_the_one_of_an_object() -> None:
    assert [reward_of(each) for each in ("1", "0.25\n", '{"reward": 0.5, "x": 1}', '{"passed": 1}')] == [
        1,
        0.25,
        0.5,
        1,
    ]
