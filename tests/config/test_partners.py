"""Options that do nothing by themselves: each says so at its declaration, and a command line that gives one is told."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from miles_lite.config import partners
from miles_lite.config.flags import every_option, parse_known, parser_of
from miles_lite.config.option import Declared
from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from tests.config.helpers import NEEDED

OPTIONS = {each.field.name: each for each in every_option(Config)}
DEFAULTS = {name: each.field.default for name, each in OPTIONS.items()}
TOGETHER = [each for each in OPTIONS.values() if each.option.needs or each.with_]


def parser() -> argparse.ArgumentParser:
    return parser_of(Config, prog="miles-lite train")


def text_of(each: Declared) -> str:
    return each.option.needs or each.with_ or ""


def another(each: Declared) -> list[str]:
    """The option with a value that is not its default."""
    action: Any = parser()._option_string_actions[each.flag]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [each.flag.replace("--", "--no-", 1) if each.field.default else each.flag]
    if each.option.spelled:
        return [f"{each.flag}={str(not each.field.default).lower()}"]
    if action.choices:
        return [each.flag, next(str(choice) for choice in action.choices if choice != each.default)]
    if action.type in (int, float):
        least, most = each.option.least, each.option.most
        tried = (0.25, 0.5, 0.75) if most == 1 or each.option.below == 1 else (2, 3, max(2, int(least or 0)) + 2)
        default = each.field.default[0] if isinstance(each.field.default, tuple) and each.field.default else None
        return [each.flag, next(str(one) for one in tried if one not in (each.field.default, default))]
    return [each.flag, *(("name", "path") if each.field.name == "eval_prompt_data" else ("other",))]


def unmet(each: Declared) -> list[str]:
    """What takes the first of its partners away, where they are there."""
    first = partners.parts(text_of(each))[0]
    if partners.missing(text_of(each), DEFAULTS | {"num_rollout": 3}) is not None:
        return []
    partner = OPTIONS[first[0].name]
    wanted = {one.value for one in first}
    if first[0].value is None:
        return another(partner)
    return [partner.flag, next(name for name in partner.option.named if name not in wanted)]


def told(argv: list[str]) -> dict[str, list[str]]:
    config, _ = parse_known(parser_of(Config, prog="miles-lite train"), [*NEEDED, *argv], Config)
    return partners.alone(config)


@pytest.mark.parametrize("each", TOGETHER, ids=lambda each: str(each.flag))
def test_partners_are_options_and_values_that_they_take(each: Declared) -> None:
    assert not (each.option.needs and each.with_)
    for partner in (one for part in partners.parts(text_of(each)) for one in part):
        action = parser()._option_string_actions[partner.flag.split()[0]]
        choices = action.choices or OPTIONS[partner.name].option.named
        assert partner.value is None or partner.value in [*map(str, choices)], partner


@pytest.mark.parametrize("each", TOGETHER, ids=lambda each: str(each.flag))
def test_an_option_without_its_partner_is_refused_or_told_of_in_one_line(each: Declared) -> None:
    partner, taken = partners.parts(text_of(each))[0][0], unmet(each)
    argv = [*taken, *another(each)]
    if each.option.needs:
        with pytest.raises(UserError, match=f"^{each.flag} needs {partner.flag}.*leave {each.flag} out"):
            told(argv)
        return
    lines = {flag: why for why, flags in told(argv).items() for flag in flags}
    assert lines[each.flag].startswith(f"{'beside' if partner.off else 'without'} {partner.flag}")
    assert set(lines) <= {each.flag, *taken}


@pytest.mark.parametrize("each", TOGETHER, ids=lambda each: str(each.flag))
def test_an_option_with_its_partner_is_not_spoken_of(each: Declared) -> None:
    wanted = partners.parts(text_of(each))
    for part in wanted:
        for chosen in part:
            met = {one.name: one.value or not one.off for one in (chosen, *(others[0] for others in wanted))}
            assert partners.missing(text_of(each), DEFAULTS | met) is None


def test_defaults_are_not_spoken_of() -> None:
    assert told([]) == {}
    plain = [each for each in TOGETHER if isinstance(each.default, int | float | str) and each.default is not True]
    given = [word for each in plain if each.default is not False for word in (each.flag, str(each.default))]
    assert len(given) > 40
    assert told(given) == {}


def test_what_changes_nothing_is_said_once_for_all_that_lack_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--ref-load m --kl-loss-type k3 --tis-clip 3 --loss-type sapo --eps-clip-high 0.3 --lambd 0.9"
    _, leftovers = parse([*NEEDED, *flags.split()])
    leftovers.show_ignored()
    said = capsys.readouterr().err.splitlines()
    assert "ignored: --ref-load, --kl-loss-type: nothing is changed without --use-kl-loss or --kl-coef" in said
    assert "ignored: --lambd: nothing is changed without --advantage-estimator ppo" in said
    assert len(said) == 4


@pytest.mark.parametrize("how", ["--loss-type=sft_loss", "--load-debug-rollout-data=d/{rollout_id}.pt"])
def test_what_only_rollouts_look_at_is_told_of_where_there_are_none(how: str) -> None:
    flags = "--rm-type f1 --router-timeout 5 --engine-restarts 1 --num-session-servers 2 --eval-temperature 0.5".split()
    (why, said), *more = told([how, *flags, "--seed", "3", "--chat-template-path", "t.jinja"]).items()
    assert why == f"beside {how.partition('=')[0]}" + (" sft_loss" if "sft" in how else "")
    assert sorted(said) == sorted(flag for flag in flags if flag.startswith("--"))
    assert not more


def test_a_loss_of_the_users_may_read_anything() -> None:
    assert told(["--loss-type", "mine.py:loss", "--sapo-tau-pos", "2", "--dppo-tv", "0.5"]) == {}
    custom = ["--loss-type", "custom_loss", "--custom-loss-function-path", "mine.py:loss"]
    assert told([*custom, "--eps-clip-high", "0.5"]) == {}
    assert told(["--advantage-estimator", "mine.py:estimate", "--gamma", "0.5"]) == {}
