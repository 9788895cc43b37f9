"""The mechanism beneath every command's options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from miles_lite.config import choices
from miles_lite.config.flags import every_option, parse_known, parser_of, take
from miles_lite.config.option import KEY, again, declared, option
from miles_lite.config.options import Config, parse
from miles_lite.config.serving import Serving
from miles_lite.errors import UserError
from tests.config.commands import COMMANDS


class Size(choices.Word):
    SMALL = "small"
    BIG = "big"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """group: of two."""

    size: Size = option(Size.SMALL, help="size", aka=("--other-size",), read={"huge": "big"})
    folder: str | None = option(None, help="folder", path=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """command: a group and options of its own."""

    group: Group
    name: str = option(positional=True, help="name")
    switch: bool = option(False, help="switch", spelled=True)
    size_again: Size = again(Group, "size", default=Size.BIG, aka=())


def parsed(*argv: str) -> Command:
    return take(parser_of(Command, prog="test").parse_args(list(argv)), Command)


def test_a_command_is_its_groups_and_options_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed("n") == Command(group=Group(), name="n")
    given = parsed("n", "--size", "big", "--folder", "x", "--switch")
    assert given == Command(group=Group(size=Size.BIG, folder=str(tmp_path / "x")), name="n", switch=True)
    assert given.group.size is Size.BIG
    assert parsed("n", "--other-size", "huge").group.size is Size.BIG
    assert [parsed("n", "--switch", word).switch for word in ("true", "false")] == [True, False]
    with pytest.raises(UserError, match=r"invalid choice: 'no' \(choose from "):
        parsed("n", "--switch", "no")
    assert parsed("n").size_again is Size.BIG


def test_what_is_not_known_is_said_before_what_lacks() -> None:
    with pytest.raises(UserError, match="the following arguments are required: name"):
        parsed("--size", "big")
    with pytest.raises(UserError, match="--sise"):
        parsed("--sise", "big")
    with pytest.raises(UserError, match=r"--hf-chekpoint(.|\n)*--hf-checkpoint"):
        parse(["--hf-chekpoint", "x"])
    with pytest.raises(UserError, match="the following arguments are required: --hf-checkpoint"):
        parse([])


def test_a_word_is_shown_as_it_is_written() -> None:
    assert f"{Size.BIG} {Size.BIG!r} {[Size.BIG]}" == "big 'big' ['big']"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.__name__))
def test_no_flag_of_a_command_is_declared_twice(command: type) -> None:
    flags = [flag for each in every_option(command) for flag in (each.flag, *each.option.aka)]
    assert len(flags) == len(set(flags))


def test_a_field_of_every_group_is_an_option_or_what_sglang_is_told() -> None:
    groups = [field.type for field in dataclasses.fields(Config)]
    assert len(groups) == len(set(groups))
    fields = {each.field.name for each in every_option(Config)}
    assert len(fields) == sum(1 for _ in every_option(Config))
    factory: Any = Config.__dataclass_fields__["engines"].default_factory
    engines = type(factory())
    others = {field.name for field in dataclasses.fields(engines) if KEY not in field.metadata}
    assert others == {"sglang_args"}
    assert {each.field.name for each in declared(engines)} < fields


def test_sglangs_flags_reach_the_group_that_holds_them() -> None:
    argv = ["--hf-checkpoint", "m", "--sglang-page-size", "16"]
    options, _ = parse_known(parser_of(Serving, prog="test"), argv, Serving)
    assert options.engines.sglang_args == {"page_size": "16"}
