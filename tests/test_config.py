from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.config import build_parser, parse
from miles_lite.errors import UserError

NEEDED = ["--hf-checkpoint", "m", "--prompt-data", "p", "--rollout-batch-size", "4", "--num-rollout", "3"]
SURFACE = Path(__file__).parent / "cli_surface.txt"


def test_the_command_line_is_a_decision() -> None:
    """A changed flag or default shows here first; write the new surface only when it is meant."""
    lines = [
        f"{action.option_strings[0]} = {action.default!r}"
        for action in build_parser()._actions
        if action.dest != "help"
    ]
    assert "\n".join(lines) + "\n" == SURFACE.read_text()


def test_launcher_flags_of_this_field_are_understood() -> None:
    config, leftovers = parse(
        [
            *NEEDED,
            *("--n-samples-per-prompt", "8", "--global-batch-size", "16", "--use-kl-loss", "--eps-clip-high", "0.28"),
            *("--sglang-mem-fraction-static", "0.7", "--sglang-enable-dp-attention", "--sglang-cuda-graph-bs=8"),
            *("--tensor-model-parallel-size", "1", "--num-layers", "36", "--moe-router-topk", "8", "--swiglu"),
            *("--use-session-server", "--eval-prompt-data", "aime", "a.jsonl", "gpqa", "g.jsonl"),
        ]
    )
    assert config.global_batch_size == 16
    assert config.session.use_session_server == "v1"
    assert config.evaluation.datasets == {"aime": "a.jsonl", "gpqa": "g.jsonl"}
    assert leftovers.sglang == {"mem_fraction_static": "0.7", "enable_dp_attention": True, "cuda_graph_bs": "8"}
    assert leftovers.ignored == ("tensor-model-parallel-size", "num-layers", "moe-router-topk", "swiglu")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout-batchsize", "3"], "unknown flag --rollout-batchsize: did you mean --rollout-batch-size"),
        (["stray"], "unexpected argument 'stray'"),
        (["--tensor-model-parallel-size", "2"], "does not exist here yet"),
        (["--lr", "fast"], "argument --lr: invalid float value"),
        (["--advantage-estimator", "magic"], "invalid choice: 'magic'"),
        (["--over-sampling-batch-size", "2"], "below --rollout-batch-size 4"),
        (["--global-batch-size", "3"], "does not divide 4 rollouts"),
        (["--num-steps-per-rollout", "3"], "does not divide 4 rollouts"),
        (["--num-steps-per-rollout", "2", "--global-batch-size", "4"], "contradicts"),
        (["--use-tis", "--use-rollout-logprobs"], "exclude each other"),
        (["--use-dynamic-batch-size"], "needs --max-tokens-per-gpu"),
        (["--save-interval", "2"], "needs --save"),
        (["--save-hf", "hf"], "--save-hf needs --save"),
        (["--eval-interval", "2"], "needs --eval-prompt-data"),
        (["--eval-prompt-data", "one"], "takes pairs"),
        (["--loss-type", "sft_loss", "--n-samples-per-prompt", "2"], "runs no engines"),
        (["--rollout-temperature", "0"], "no policy gradient"),
        (["--tito-allowed-append-roles", "robot"], "only tool, user, system"),
        (["--rollout-num-gpus", "3", "--rollout-num-gpus-per-engine", "2"], "is not a multiple"),
    ],
)
def test_bad_flags_get_one_clear_message(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([*NEEDED, *flags])


def test_a_missing_flag_is_named() -> None:
    with pytest.raises(UserError, match="--hf-checkpoint"):
        parse(NEEDED[2:])
    with pytest.raises(UserError, match="--num-rollout or --num-epoch"):
        parse(NEEDED[:-2])
