"""Launchers of the field: every flag has a fate, and a translated launcher is one of ours."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from miles_lite.cli import main
from miles_lite.commands.migrate import main as migrate
from miles_lite.commands.migrate import python_flags, shell_flags
from miles_lite.config.field_flags import ANSWERS, Fate, answer_to
from miles_lite.config.flags import every_option
from miles_lite.config.migration import translate
from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from tests.config.test_options import NEEDED, SURFACE

LAUNCHER = r"""
#!/bin/bash
pkill -9 sglang   # not ours
NUM_GPUS=4
source "models/qwen3-4B.sh"
CKPT_ARGS=(
   --hf-checkpoint /root/Qwen3-4B
   # --load /root/old
   --save /root/out --save-interval 20
)
ROLLOUT_ARGS=(
   --prompt-data /root/dapo.jsonl
   --input-key prompt --label-key label
   --apply-chat-template --rollout-shuffle
   --rm-type deepscaler
   --num-rollout 30 --rollout-batch-size 32 --n-samples-per-prompt 8
   --train-backend megatron
   --dump-details "/root/dump it"
)
WANDB_ARGS=( --use-wandb --wandb-team us --disable-wandb-random-suffix )
ray job submit -- python3 train.py \
   --actor-num-nodes 1 \
   --actor-num-gpus-per-node ${NUM_GPUS} \
   --colocate --update-weight-transfer-mode broadcast \
   --multimodal-keys '{"image": "images"}' --no-such-flag 3 \
   ${MODEL_ARGS[@]} \
   ${CKPT_ARGS[@]}
"""


def test_no_flag_of_the_table_is_declared_but_for_some_of_its_values() -> None:
    own = {name for each in every_option(Config) for name in (each.flag, *each.option.aka)}
    for name, answers in ANSWERS.items():
        assert f"--{name}" not in own or all(answer.values for answer in answers), name
        assert all((answer.ours is None) == (answer.fate is not Fate.MAPPED) for answer in answers), name


def test_what_is_mapped_can_be_parsed() -> None:
    for name, answers in ANSWERS.items():
        for answer in answers:
            if answer.ours is not None:
                parse([*NEEDED, "--label-key", "l", *answer.ours(["some/folder"])])
                assert answer_to(name, [*answer.values[:1], "x"]) == answer


def test_a_run_takes_a_launchers_flags_and_says_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (
        "--dump-details d --use-fault-tolerance --fp8-format e4m3 --swiglu --num-layers 3 --chat-template-path autofix"
    )
    config, leftovers = parse([*NEEDED, *argv.split(), "--update-weight-transfer-mode", "broadcast"])
    assert config.debugging.save_debug_rollout_data == str(Path("d/rollout_data/{rollout_id}.pt").absolute())
    assert config.session.chat_template_path is None
    assert config.updates.update_weight_transfer_mode == "distributed"
    leftovers.show_ignored()
    said = capsys.readouterr().err
    assert (
        "--dump-details: --save-debug-rollout-data d/rollout_data/{rollout_id}.pt --trajectory-dir d/trajectory: "
        in said
    )
    assert "ignored: --swiglu, --num-layers: the checkpoint's config.json has the model's shape" in said
    with pytest.raises(UserError, match="--multimodal-keys: prompts are text"):
        parse([*NEEDED, "--multimodal-keys", "{}"])


def test_a_shell_launcher_becomes_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.sh"
    file.write_text(LAUNCHER)
    assert main(["migrate", str(file), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr()
    assert "NUM_GPUS=4\n" in said.out
    assert "  --save-debug-rollout-data '/root/dump it/rollout_data/{rollout_id}.pt'\n" in said.out
    assert '  --actor-num-gpus-per-node "${NUM_GPUS}"\n' in said.out
    assert "--load" not in said.out
    assert "mapped: --train-backend: left out: Hugging Face models are trained by FSDP2" in said.err
    assert "by hand: refused: --multimodal-keys: " in said.err
    assert "by hand: not known: --no-such-flag: " in said.err
    told = json.loads((tmp_path / "out.json").read_text())[str(file)]
    assert (told["unknown"], list(told["refused"])) == (["--no-such-flag"], ["--multimodal-keys"])
    ours = shlex.split(said.out.partition("CKPT_ARGS=(")[2].replace("${NUM_GPUS}", "4").partition("exec")[0])
    config, leftovers = parse([word for word in ours if word not in ("(", ")") and not word.endswith("_ARGS=(")])
    assert (config.topology.world_size, config.rewards.rm_type, leftovers.replaced) == (4, ("deepscaler",), ())


def test_an_asynchronous_launcher_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in (("train", "train"), ("train_async", "train-async")):
        file = tmp_path / f"{name}.sh"
        file.write_text(LAUNCHER.replace("train.py", f"{name}.py"))
        assert main(["migrate", str(file)]) == 0
        assert f"\nexec miles-lite {command} " in capsys.readouterr().out


def test_a_python_launcher_is_read_without_being_run() -> None:
    text = 'raise SystemExit\nargs = f"--lr {x} --hf-checkpoint {base}/m " "--colocate "\nargs += "--rm-type f1 "\n'
    (flags,) = python_flags(text).values()
    assert flags == [("--lr", ["$x"]), ("--hf-checkpoint", ["$x/m"]), ("--colocate", []), ("--rm-type", ["f1"])]
    assert shell_flags("MODEL_ARGS=(\n --num-layers 3\n)\n") == {}


def test_placeholders_count_as_any_value_and_others_are_checked() -> None:
    said = translate(
        [("--lr", ["x"]), ("--pause-generation-mode", ["8"]), ("--eps-clip", ["-1"]), ("--sglang-device", ["npu"])]
    )
    assert said.accepted == ["--lr", "--pause-generation-mode"]
    assert translate([("--prompt-data", []), ("--colocate", ["fi"])]).accepted == ["--prompt-data", "--colocate"]
    assert said.refused["--eps-clip"] == "--eps-clip -1.0: must be at least 0"
    assert "invalid choice: 'npu'" in said.refused["--sglang-device"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a LAUNCHER, or --flags FILE"),
        (["nowhere.sh"], "LAUNCHER nowhere.sh: cannot be read: No such file"),
        ([str(SURFACE)], "no flags of a train.py in it"),
        (["--flags", __file__], "--flags .*: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        migrate(argv)
