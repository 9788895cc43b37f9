"""Options in YAML: composed, overridden by flags, refused by the nearest name, and described to editors."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.cli import main
from miles_lite.config.options import Config, parse
from miles_lite.config.schema import as_yaml, schema
from miles_lite.config.yaml_files import plugin_args
from miles_lite.errors import UserError

BASE = """
hf_checkpoint: m
prompt-data: p.jsonl
rollouts: {rollout_batch_size: 4, num_rollout: 3, rollout_stop: [a, b]}
session: {timeline_ignore_tools: true}
colocate: true
offload_rollout: false
optimizer: {lr: 1.0e-4, min_lr: null}
sglang: {mem_fraction_static: 0.5, disable_cuda_graph: true, page_size: null}
"""


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_files_are_composed_and_flags_count_over_all(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", BASE)
    run = written(tmp_path, "run.yaml", "include: base.yaml\noptimizer: {lr: 2.0e-4}\nnum_rollout: 5\ndevice: cpu\n")
    config, leftovers = parse(["--config", run, "--num-rollout", "7", "--no-colocate", "--sglang-device", "cuda"])
    assert (config.rollouts.rollout_batch_size, config.rollouts.num_rollout, config.optimizer.lr) == (4, 7, 2e-4)
    assert (config.topology.colocate, config.topology.device) == (False, "cuda")
    assert config.rollouts.rollout_stop == ("a", "b")
    assert config.session.timeline_ignore_tools
    assert leftovers.sglang == {"mem_fraction_static": "0.5", "disable_cuda_graph": True}


def test_what_is_printed_says_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = written(tmp_path, "base.yaml", BASE)
    assert main(["train", "--config", base, "--lr-decay-style", "cosine", "--print-config"]) == 0
    printed = capsys.readouterr().out
    again = written(tmp_path, "again.yaml", printed)
    one, _ = parse(["--config", base, "--lr-decay-style", "cosine"])
    other, _ = parse(["--config", again])
    assert as_yaml(one.as_dict()) == as_yaml(other.as_dict()) == printed


def test_editors_get_a_schema_that_takes_what_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--print-config-schema"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == schema(Config)
    check = jsonschema.Draft202012Validator(told)
    check.check_schema(told)
    config, _ = parse(["--config", written(tmp_path, "base.yaml", BASE)])
    check.validate(yaml.safe_load(as_yaml(config.as_dict())))
    check.validate(yaml.safe_load(BASE.replace("prompt-data", "prompt_data")))
    for wrong in ({"lr": -1}, {"lrr": 1}, {"rollouts": {"lr": 1}}, {"pause_generation_mode": "never"}):
        assert not check.is_valid(wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rollout_batchsize: 3", "unknown key rollout_batchsize: did you mean rollout_batch_size"),
        ("optimiser: {lr: 1}", "unknown key optimiser: did you mean optimizer"),
        ("- 1", "expected options by name"),
        ("a: [", "cannot be read"),
        ("include: nowhere.yaml", "nowhere.yaml: cannot be read: No such file"),
        ("include: [run.yaml]", "it includes itself: .*run.yaml > .*run.yaml"),
        ("include: {a: 1}", "run.yaml, include: expected a file or a list of files, found {'a': 1}"),
        ("include: [{a: 1}]", "run.yaml, include: expected a file or a list of files, found"),
        ("config: base.yaml", "run.yaml: config is said by 'include: FILE', not in a file"),
        ("print-config: true", "run.yaml: print-config is said by a flag, not in a file"),
        ("colocate: maybe", "run.yaml, colocate: expected true or false, found 'maybe'"),
        ("lr: [1, 2]", r"run.yaml, lr: expected one value, found \[1, 2\]"),
        ("colocate: 1", "run.yaml, colocate: expected true or false, found 1"),
        ("sglang: 3", "expected SGLang's options"),
        ("lr: fast", "--lr: invalid float value: 'fast'"),
    ],
)
def test_mistakes_are_said_with_their_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        parse(["--config", written(tmp_path, "run.yaml", text)])


def test_files_that_include_each_other_twice_are_not_read_for_ever(tmp_path: Path) -> None:
    for number in range(20):
        written(tmp_path, f"{number}.yaml", f"include: [{number + 1}.yaml, {number + 1}.yaml]")
    written(tmp_path, "20.yaml", "lr: 1")
    with pytest.raises(UserError, match=r"0\.yaml: it includes more than 100 files"):
        parse(["--config", str(tmp_path / "0.yaml")])


def test_miles_own_files_count_over_flags_and_keep_what_is_for_plugins(tmp_path: Path) -> None:
    base = written(tmp_path, "base.yaml", BASE)
    custom = written(tmp_path, "custom.yaml", "tis_clip: 3.5\nmis_level: token\n")
    config, _ = parse(["--config", base, "--tis-clip", "2", "--custom-config-path", custom])
    assert config.algorithm.tis_clip == 3.5
    assert plugin_args(config.files.custom_config_path) == {"tis_clip": 3.5, "mis_level": "token"}


@settings(max_examples=20)
@given(lr=st.floats(0, 1), rows=st.integers(1, 99), stop=st.lists(st.text("ab '", min_size=1), max_size=3))
def test_values_come_through_as_they_are(
    lr: float, rows: int, stop: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    told = {"hf_checkpoint": "m", "prompt_data": "p", "rollout_batch_size": rows, "num_rollout": 1}
    told |= {"lr": lr, "rollout_stop": stop}
    config, _ = parse(["--config", written(folder, "any.yaml", yaml.safe_dump(told))])
    assert (config.optimizer.lr, config.rollouts.rollout_batch_size) == (lr, rows)
    assert config.rollouts.rollout_stop == tuple(stop)


def test_a_value_that_a_flag_does_not_take_is_named_by_its_file_and_key(tmp_path: Path) -> None:
    base = written(tmp_path, "base.yaml", BASE)
    for text, message in (
        ("optimizer: {lr: quick}", "run.yaml, lr: .*invalid float value: 'quick'"),
        ("rollout_batch_size: -1", "run.yaml, rollout_batch_size: --rollout-batch-size -1: must be at least 1"),
        ("lr: 1\nlr: 2", "run.yaml: cannot be read: lr is there twice"),
        ("include: gone.yaml", "run.yaml, which includes .*gone.yaml: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            parse(["--config", base, written(tmp_path, "run.yaml", text)])
