from __future__ import annotations

import sys
from pathlib import Path

import pytest

from miles_lite.config.flags import every_option
from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.hooks import HOOKS, MORE, check_hooks, load_hook, named
from miles_lite.process.calls import Call
from miles_lite.rollout.filters import check_no_aborted

FILTER = "--dynamic-sampling-filter-path"


def test_dotted_paths_and_files_resolve(tmp_path: Path) -> None:
    assert load_hook("miles_lite.rollout.filters.check_no_aborted", flag=FILTER) is check_no_aborted
    assert load_hook("miles_lite.rollout.filters:check_no_aborted", flag=FILTER) is check_no_aborted
    (tmp_path / "helper.py").write_text("VALUE = 41\n")
    (tmp_path / "hook.py").write_text("from helper import VALUE\ndef run(group):\n    return VALUE + group\n")
    assert load_hook(f"{tmp_path}/hook.py:run", flag=FILTER)(1) == 42


MADE = {"--environment", "--rollout-function-path", "--eval-function-path"}
"""What may be a class, whose objects are used."""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nodots", "expected package.module.name"),
        ("no_such_package.module.name", "cannot import no_such_package"),
        ("miles_lite.rollout.filters.nothing", "no callable named 'nothing'"),
        ("/no/such/file.py:run", "no such file"),
    ],
)
def test_a_hook_that_does_not_exist_names_its_flag(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_hook(path, flag="--custom-rm-path")
    assert "--custom-rm-path" in str(caught.value)


AGENT, PICKER, MATCHER = (
    "--custom-agent-function-path",
    "--session-sample-picker-path",
    "--session-message-matcher",
)


@pytest.mark.parametrize(
    ("flag", "source", "message"),
    [
        (AGENT, "import no_such_package\n", "cannot import .*: No module named 'no_such_package'"),
        (AGENT, "x = 1\nVALUE = UNDEFINED\n", "NameError: name 'UNDEFINED' is not defined\n  .*hook.py, line 2"),
        (AGENT, "def run(:\n", "hook.py.*line 1(.|\n)*SyntaxError"),
        (AGENT, "import sys\nsys.exit(3)\n", "SystemExit: 3\n  .*hook.py, line 2"),
        (
            AGENT,
            "import os\nprint('last words', flush=True)\nos._exit(3)\n",
            r"ended the process \(exit code 3\)\n  last",
        ),
        (AGENT, "run = 3\n", "no callable named 'run'"),
        (AGENT, "def run(**given): pass\n", "is not async: write `async def`"),
        (
            AGENT,
            "async def run(base_url, prompt): pass\n",
            r"cannot be called with \(base_url=, api_key=, .*unexpected",
        ),
        (AGENT, "async def run(url, **given): pass\n", "missing a required argument: 'url'"),
        (PICKER, "async def run(samples, metadata): return samples\n", "is async, and this one is not awaited"),
        (
            PICKER,
            "def run(samples): return samples\n",
            r"cannot be called with \(<samples>, <session_metadata>\): too many positional",
        ),
        (MATCHER, "async def run(stored, replayed): return True\n", "is async, and this one is not awaited"),
        ("--custom-rm-path", "def run(config, rollout, **given): return 1.0\n", "is not async"),
    ],
)
def test_what_cannot_be_used_is_said_of_its_flag(flag: str, source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text(source)
    with pytest.raises(UserError, match=message) as caught:
        check_hooks({flag: f"{tmp_path}/hook.py:run"})
    assert str(caught.value).startswith(flag)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("flag", [AGENT, "--custom-rm-path"])
def test_what_it_names_it_is_given_and_so_need_have_no_default(flag: str, tmp_path: Path) -> None:
    call = Call.of(HOOKS[flag])
    first = "".join(f"{name.strip('<>')}, " for name in call.positional)
    names = ", ".join([*call.keywords, *MORE[HOOKS[flag]]])
    (tmp_path / "hook.py").write_text(
        f"async def run({first}*, {names}): ...\nasync def more({first}*, {names}, other): ...\n"
    )
    run = load_hook(f"{tmp_path}/hook.py:run", flag=flag)
    assert set(named(run, dict.fromkeys([*MORE[HOOKS[flag]], "else"]))) == set(MORE[HOOKS[flag]])
    with pytest.raises(UserError, match=f"argument: 'other'; it may also have {', '.join(MORE[HOOKS[flag]])}$"):
        load_hook(f"{tmp_path}/hook.py:more", flag=flag)


@pytest.mark.parametrize("flag", HOOKS)
def test_what_does_not_say_its_signature_is_judged_by_what_it_does_say(flag: str) -> None:
    """A function in C that tells no parameters is let through, unless it must be awaited."""
    if Call.of(HOOKS[flag]).waits:
        with pytest.raises(UserError, match="is not async"):
            load_hook("builtins.max", flag=flag)
    else:
        assert load_hook("builtins.max", flag=flag) is max


@pytest.mark.parametrize("flag", [flag for flag in HOOKS if flag not in MADE])
def test_a_class_is_refused_though_it_and_its_objects_can_be_called(flag: str, tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text(
        "class Hook:\n    def __init__(self, *a, **more): ...\n    async def __call__(self, *a, **more): ...\n"
    )
    with pytest.raises(UserError, match="is a class: name a function, or an object of it"):
        load_hook(f"{tmp_path}/hook.py:Hook", flag=flag)


def test_what_can_be_used_is_let_through_without_being_imported_here(tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text(
        "import functools\n"
        "print('noise')\n"
        "async def plain(base_url, prompt, request_kwargs, metadata, **kw): ...\n"
        "@functools.wraps(plain)\n"
        "def wrapped(**given): return plain(**given)\n"
        "class Agent:\n"
        "    async def __call__(self, **given): ...\n"
        "called = Agent()\n"
        "part = functools.partial(plain, limit=3)\n"
    )
    before = set(sys.modules)
    for name in ("plain", "wrapped", "called", "part"):
        check_hooks({AGENT: f"{tmp_path}/hook.py:{name}", FILTER: "miles_lite.rollout.filters.check_no_aborted"})
    assert not [name for name in set(sys.modules) - before if "hook" in name]
    assert list(tmp_path.iterdir()) == [tmp_path / "hook.py"] or (tmp_path / "__pycache__").exists()


def test_every_flag_that_names_a_function_has_its_signature() -> None:
    """And every signature its flag: what a flag's function is called with is said in one place."""
    flags = {each.flag: each.option.help for each in every_option(Config)}
    assert {flag for flag, told in flags.items() if "fn(" in told or "file.py:name" in told} == set(HOOKS)
