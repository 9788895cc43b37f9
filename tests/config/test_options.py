from __future__ import annotations

import argparse
import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.flags import parser_of
from miles_lite.config.options import Config, parse
from miles_lite.config.redaction import redacted
from miles_lite.config.spelling import edits
from miles_lite.engine.sglang_flags import known_options
from miles_lite.errors import UserError
from tests.config.helpers import NEEDED, SURFACE

TAUGHT = ("--opd-log-prob-top-k", "4", "--opd-loss-coef", "1", "--opd-teacher")
MAXRL = ("--advantage-estimator", "maxrl", "--n-samples-per-prompt", "2", "--label-key", "l", "--rm-type")
EIGHT = ("--actor-num-gpus-per-node", "8")
UNBOUNDED = ("--entropy-coef", "--reward-chance", "--easy-threshold", "--hard-threshold")


def test_the_command_line_is_a_decision() -> None:
    """A changed flag or default shows here first; write the new surface only when it is meant."""
    lines = sorted(
        f"{action.option_strings[0]} = {action.default!r}"
        for action in parser_of(Config, prog="miles-lite train")._actions
        if action.dest != "help"
    )
    assert lines == sorted(SURFACE.read_text().splitlines())


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
    assert config.evaluation.datasets == {
        "aime": str(Path("a.jsonl").absolute()),
        "gpqa": str(Path("g.jsonl").absolute()),
    }
    assert leftovers.sglang == {"mem_fraction_static": "0.7", "enable_dp_attention": True, "cuda_graph_bs": "8"}
    assert leftovers.ignored == ("num-layers", "moe-router-topk", "swiglu")


def test_parallel_sizes_leave_data_parallel_ranks_over() -> None:
    flags = (
        "--tensor-model-parallel-size 4 --sequence-parallel --pipeline-model-parallel-size 2 --context-parallel-size 1"
    )
    flags += " --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 --recompute-granularity full"
    flags += " --recompute-method uniform --recompute-num-layers 1 --optimizer-cpu-offload --deterministic-mode"
    config, leftovers = parse([*NEEDED, *EIGHT, "--actor-num-nodes", "2", *flags.split()])
    assert (config.topology.world_size, config.dp_size) == (16, 4)
    assert [config.dp_rank(rank) for rank in (0, 3, 4, 15)] == [0, 0, 1, 3]
    assert config.compute.recomputes
    assert leftovers.ignored == ("sequence-parallel", "expert-tensor-parallel-size")
    [remark] = config.parallelism.notices()
    assert "there are no stages here" in remark


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout-batchsize", "3"], "unknown flag --rollout-batchsize: did you mean --rollout-batch-size"),
        (["stray"], "unexpected argument 'stray'"),
        (
            ["--tensor-model-parallel-size", "2"],
            "1 train ranks .*: --tensor-model-parallel-size 2",
        ),
        ([*EIGHT, "--context-parallel-size", "3"], "8 train ranks .* --context-parallel-size 3 must divide them"),
        ([*EIGHT, "--data-parallel-replicate-size", "3"], "does not divide the 8 data-parallel ranks"),
        ([*EIGHT, "--expert-model-parallel-size", "3"], "size 3 must divide 8 ranks"),
        (
            [*EIGHT, "--tensor-model-parallel-size", "4", "--expert-model-parallel-size", "2"],
            "be a multiple of --tensor-model-parallel-size 4",
        ),
        (
            [*EIGHT, "--data-parallel-sharding-strategy", "no_shard", "--tensor-model-parallel-size", "2"],
            "only on CPU, and without tensor",
        ),
        (["--recompute-method", "block"], "block needs --recompute-num-layers"),
        (["--lr", "fast"], "argument --lr: invalid float value"),
        (["--advantage-estimator", "magic"], "not known. Known are grpo"),
        (["--loss-type", "cisp"], "did you mean cispo"),
        (["--over-sampling-batch-size", "2"], "below --rollout-batch-size 4"),
        (["--max-weight-staleness", "1", "--pipeline-depth", "2"], "is above --max-weight-staleness 1"),
        (["--pipeline-depth", "1"], "is above --max-weight-staleness 0"),
        (["--fully-async", "--max-weight-staleness", "0"], "--fully-async contradicts"),
        (["--partial-rollout", "--max-weight-staleness", "0"], "--partial-rollout contradicts"),
        (["--fully-async", "--colocate", "--offload-rollout", "--device", "cuda"], "engines without memory"),
        (["--async-max-concurrent-samples", "65"], "have room for 64"),
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
        (["--prefill-num-servers", "1"], "at least one must be left to decode"),
        (["--num-routers", "2"], "--num-routers 2 is above --num-session-servers 1"),
        (
            [*"--num-routers 2 --num-session-servers 2 --sglang-router-ip h --sglang-router-port 1".split()],
            "--num-routers 2: not with --sglang-router-ip",
        ),
        (["--sglang-router-ip", "10.0.0.1"], "--sglang-router-ip needs --sglang-router-port"),
        (["--eval-prompt-data", "a", "x", "a", "y"], "a name is there twice"),
        (["--min-lr", "1"], "--min-lr 1.0 is above --lr"),
        (["--kl-loss-coef", "0.1"], "needs --use-kl-loss"),
        (["--tis-clip-low", "3"], "is above --tis-clip 2.0"),
        (["--rollout-top-k", "0"], "give -1 .off. or at least 1"),
        (["--rm-type", "magic"], "invalid choice: .magic."),
        (["--rm-type", "contains"], "needs --label-key"),
        (["--rm-type", "random", "--custom-rm-path", "a.b"], "exclude each other"),
        (["--loss-type", "sft_loss", "--use-tis"], "has no rollouts"),
        (["--loss-type", "cispo", "--importance-sampling-level", "sequence"], "cispo has ratios of a token only"),
        (["--loss-type", "gspo", "--importance-sampling-level", "token"], "gspo has ratios of a sequence only"),
        (["--loss-type", "gspo", "--calculate-per-token-loss"], "gspo has one ratio per sequence"),
        (["--advantage-estimator", "gspo", "--calculate-per-token-loss"], "gspo has one ratio per sequence"),
        (["--importance-sampling-level", "sequence", "--loss-reduction", "constant"], "one ratio per sequence"),
        (["--loss-type", "custom_loss"], "--custom-loss-function-path need each other"),
        (["--calculate-per-token-loss", "--loss-reduction", "prompt"], "contradicts --loss-reduction prompt"),
        (["--loss-type", "sapo", "--eps-clip-c", "3"], "sapo has no dual clip"),
        (["--entropy-clamp", "2"], "needs --entropy-coef"),
        (["--tis-mode", "mask"], "--tis-mode needs --use-tis"),
        (["--rs-lower-bound", "3"], "is above --rs-upper-bound"),
        (["--use-rs", "--use-rollout-logprobs"], "exclude each other"),
        (["--kl-coef", "0.1", "--use-kl-loss", "--kl-loss-coef", "0.1"], "in the rewards or in the loss"),
        (["--use-unbiased-kl"], "needs --use-kl-loss"),
        (["--advantage-estimator", "rloo"], "take --n-samples-per-prompt 2 or more"),
        (["--advantage-estimator", "ppo", "--disable-rewards-normalization"], "ppo has no such choice"),
        (["--use-opd"], "--use-opd needs --opd-teacher"),
        (["--advantage-estimator", "on_policy_distillation"], "needs --opd-teacher"),
        ([*MAXRL, "dapo"], "--rm-type dapo gives rewards below 0.0, and --advantage-estimator maxrl takes none"),
        ([*MAXRL, "math", "f1=-0.5"], "--rm-type math f1=-0.5 gives rewards below 0.0"),
        (["--overlong-buffer-len", "1025"], "is above --rollout-max-response-len 1024"),
        ([*MAXRL, "math", "--overlong-buffer-len", "8"], "--advantage-estimator maxrl takes none below 0.0"),
        (
            ["--overlong-buffer-len", "8", "--advantage-estimator", "on_policy_distillation", "--opd-teacher", "a"],
            "and --advantage-estimator on_policy_distillation does not look at it",
        ),
        (["--opd-teacher", "a", "b"], "several need a name each"),
        (["--opd-teacher", "x=a", "y=b"], "it says which of them a prompt has"),
        (["--opd-teacher", "http://h:1", "--opd-type", "megatron"], "must be a folder"),
        (["--opd-teacher", "http://h:1", "--rollout-temperature", "0.8"], "take a folder, or temperature 1"),
        (["--opd-teacher", "a", "--opd-kl-coef", "0"], "teaches nothing"),
        (["--opd-teacher", "a", "--opd-log-prob-top-k", "4"], "--opd-log-prob-top-k needs --opd-loss-coef"),
        ([*TAUGHT, "http://h:1"], "give --opd-top-k-strategy only-teacher, or take a folder"),
        (["--keep-old-actor", "--use-rollout-logprobs"], "give one of them"),
        (
            ["--sglang-tp-size", "4", "--rollout-num-gpus-per-engine", "2"],
            "contradicts --sglang-tp-size 4: they are one",
        ),
        (["--rollout-max-context-len", "9", "--sglang-context-length", "8"], "length 8 contradicts --rollout-max-con"),
        (["--sglang-router-polcy", "manual"], "the router has no such option: did you mean --sglang-router-policy"),
        (["--sglang-router-policy", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_flags_get_one_clear_message(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([*NEEDED, *flags])


@pytest.mark.parametrize(
    "more", [("f1",), ("remote_rm", "--rm-url", "http://h"), ("dapo", "--custom-reward-post-process-path", "a.b")]
)
def test_rewards_that_may_suit_the_estimator_are_let_through(more: tuple[str, ...]) -> None:
    parse([*NEEDED, *MAXRL, *more])


def test_other_launchers_names_of_an_option_are_that_option() -> None:
    """Also the router's, which are no option of the engines."""
    spelled = {
        "--sglang-router-policy=consistent_hashing": ("routing", "router_policy", "least_in_flight"),
        "--sglang-router-policy=round_robin": ("routing", "router_policy", "round_robin"),
        "--sglang-router-request-timeout-secs=14400": ("routing", "router_timeout", 14400.0),
        "--miles-router-timeout=30": ("routing", "router_timeout", 30.0),
        "--sglang-tp-size=1": ("topology", "rollout_num_gpus_per_engine", 1),
        "--sglang-context-length=4096": ("context", "rollout_max_context_len", 4096),
        "--sglang-random-seed=7": ("seeding", "seed", 7),
        "--sglang-device=cpu": ("topology", "device", "cpu"),
    }
    for flag, (group, name, value) in spelled.items():
        config, leftovers = parse([*NEEDED, flag])
        assert getattr(getattr(config, group), name) == value
        assert leftovers.sglang == {}
    config, _ = parse([*NEEDED, "--sglang-tp-size", "1", "--rollout-num-gpus-per-engine", "1"])
    assert config.topology.rollout_num_gpus_per_engine == 1
    ignored = ["router-assignment-mode", "router-health-check-interval-secs", "miles-router-max-connections"]
    _, leftovers = parse([*NEEDED, *(f"--{name}=1" for name in ignored)])
    assert leftovers.ignored == tuple(ignored)


@given(st.text("abcdefgh-", max_size=24), st.text("abcdefgh-", max_size=24))
def test_a_hint_is_a_typing_mistake_away(one: str, other: str) -> None:
    """A distance: nothing to itself, symmetric, at least the difference in length; a swap is one mistake."""
    assert edits(one, one) == 0
    assert edits(one, other) == edits(other, one)
    assert abs(len(one) - len(other)) <= edits(one, other) <= max(len(one), len(other))
    if len(one) > 1 and one[0] != one[1]:
        assert edits(one, one[1] + one[0] + one[2:]) == 1


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--num-rolout", "--num-rollout"),
        ("--rollout-bacth-size", "--rollout-batch-size"),
        ("--sed", "--seed"),
        ("--wandb-squad", ""),
        ("--rollout-magic", ""),
        ("--use-quantum-computer", ""),
        ("--xyz", ""),
    ],
)
def test_no_flag_is_named_that_nobody_meant(flag: str, hint: str) -> None:
    with pytest.raises(UserError) as told:
        parse([*NEEDED, flag, "1"])
    assert (f"did you mean {hint}?" in str(told.value)) if hint else ("did you mean" not in str(told.value))


def test_keys_are_not_shown_and_config_json_is_its_owners_alone(tmp_path: Path) -> None:
    secrets = ["--sglang-admin-api-key", "s3cret-1", "--sglang-api-key", "s3cret-2"]
    secrets += ["--sglang-ssl-keyfile-password", "s3cret-3", "--sglang-page-size", "16", "--run-dir", str(tmp_path)]
    config, _ = parse([*NEEDED, *secrets])
    config.write()
    written = tmp_path / "config.json"
    assert "s3cret" not in written.read_text()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    shown = json.loads(written.read_text())["engines"]["sglang_args"]
    hidden = dict.fromkeys(("admin_api_key", "api_key", "ssl_keyfile_password"), "***")
    assert shown == hidden | {"page_size": "16"}
    assert config.engines.sglang_args["admin_api_key"] == "s3cret-1"


def test_which_options_of_the_installed_sglang_are_secrets() -> None:
    hidden = {name for name, shown in redacted(dict.fromkeys(known_options(), "x")).items() if shown != "x"}
    assert {"admin_api_key", "api_key", "ssl_keyfile_password"} <= hidden
    assert not hidden & {"tokenizer_path", "bucket_time_to_first_token", "tokenizer_mode", "max_total_tokens"}


NUMBERS = [action for action in parser_of(Config, prog="miles-lite train")._actions if action.type in (int, float)]


@pytest.mark.parametrize("action", NUMBERS, ids=lambda action: str(action.option_strings[0]))
def test_every_number_has_bounds(action: argparse.Action) -> None:
    """What no run could mean is refused by name, before anything is started."""
    flag = action.option_strings[0]
    absurd = ["-2"] if action.type is int else ["-2", "nan", "inf", "-inf"]
    for value in absurd if flag not in UNBOUNDED else absurd[1:]:
        with pytest.raises(UserError, match=f"^{flag} {value}(.0)?: must be|^{flag} must be"):
            parse([*NEEDED, f"{flag}={value}"])


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--num-rollout", "0", "must be at least 1"),
        ("--global-batch-size", "0", "must be at least 1"),
        ("--session-server-port", "65536", "must be at least 1 and at most 65535"),
        ("--rollout-top-p", "1.1", "must be above 0 and at most 1"),
        ("--adam-beta2", "1", "must be at least 0 and below 1"),
        ("--eps-clip-c", "1", "must be above 1"),
        ("--seed", str(2**31), "at most 2147483647"),
    ],
)
def test_bounds_hold_at_their_edge(flag: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{flag} {value}.*{message}"):
        parse([*NEEDED, flag, value])


def test_an_empty_text_is_refused() -> None:
    for flag in ("--run-dir", "--hf-checkpoint", "--label-key", "--rollout-stop"):
        with pytest.raises(UserError, match=f"{flag} is empty"):
            parse([*NEEDED, flag, ""])


def test_a_path_means_the_same_wherever_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An actor's working folder may be another one, and bash leaves the ~ of --save=~/x alone."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    config, _ = parse([*NEEDED, "--save=~/x", "--load", "x", "--save-hf", "hf/{rollout_id}", "--run-dir", "../r"])
    assert (config.checkpoint.save, config.checkpoint.load) == ("/home/me/x", str(tmp_path / "x"))
    assert config.checkpoint.save_hf == str(tmp_path / "hf" / "{rollout_id}")
    assert config.run_dir == tmp_path.parent / "r"
    assert config.data.prompt_data == str(tmp_path / "p")


def test_a_missing_flag_is_named() -> None:
    with pytest.raises(UserError, match="--hf-checkpoint"):
        parse(NEEDED[2:])
    with pytest.raises(UserError, match="--num-rollout or --num-epoch"):
        parse(NEEDED[:-2])
    with pytest.raises(UserError, match="--lr-decay-style linear needs --num-rollout"):
        parse([*NEEDED[:-2], "--num-epoch", "1", "--lr-decay-style", "linear"])


@pytest.mark.parametrize(
    ("flags", "staleness"),
    [
        ([], 0),
        (["--fully-async"], 3),
        (["--partial-rollout"], 1),
        (["--fully-async", "--max-weight-staleness", "2"], 2),
    ],
)
def test_how_old_tokens_may_be_follows_from_the_names_of_this_field(flags: list[str], staleness: int) -> None:
    scheduling = parse([*NEEDED, *flags])[0].scheduling
    assert scheduling.staleness == staleness
    assert scheduling.overlaps == (staleness > 0)
