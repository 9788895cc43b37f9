"""What launchers would run: flags that exist, nothing secret, nothing started."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launchers.helpers import JOB, REPO, dry_run, train_config

LAUNCHERS = sorted(path for path in (REPO / "launchers").glob("*.sh") if path.name != "common.sh")


@pytest.mark.parametrize(
    "launcher", ["quickstart.sh", "run-env.sh", "run-local.sh", "run-pd.sh", "run-ray-job.sh", "run-swe-agent.sh"]
)
def test_the_flags_exist_and_the_users_win(launcher: str) -> None:
    config = train_config(dry_run(launcher, "--lr", "0.125", **JOB))
    assert config.optimizer.lr == 0.125


@pytest.mark.parametrize(
    "environment", ["nemo-gym:http://h:1", "verifiers:tcp://h:1", "program:python3 /a/b.py --fast"]
)
def test_an_environment_and_its_arguments_are_passed_on_as_they_are(environment: str) -> None:
    config = train_config(
        dry_run("run-env.sh", **{**JOB, "ENVIRONMENT": environment, "ENVIRONMENT_ARGS": '{"tasks": "a b"}'})
    )
    assert (config.data.environment, config.data.environment_args) == (environment, '{"tasks": "a b"}')


def test_an_environment_trains_on_its_own_prompts_and_holds_some_out() -> None:
    config = train_config(dry_run("run-env.sh", **JOB))
    assert (config.data.environment, config.data.prompt_data) == (JOB["ENVIRONMENT"], "environment:train")
    assert config.evaluation.datasets == {"held_out": "environment:test@[0:64]"}
    assert not train_config(dry_run("run-env.sh", **JOB, HELD_OUT="0")).evaluation.datasets


def test_quickstart_takes_seed_and_folder() -> None:
    output = dry_run("quickstart.sh", SEED="7", RUN_DIR="/runs/a run")
    config = train_config(output)
    assert (config.seeding.seed, config.data.rollout_seed) == (7, 7)
    assert config.run_dir == Path("/runs/a run")
    assert config.model.hf_checkpoint == "/runs/a run/data/model"
    assert "prepare.py --out /runs/a\\ run/data" in output


@pytest.mark.parametrize("gpus", ["0", "4"])
def test_one_node_with_and_without_gpus(gpus: str) -> None:
    config = train_config(dry_run("run-local.sh", **{**JOB, "NUM_GPUS": gpus}))
    assert config.topology.device == ("auto" if gpus == "4" else "cpu")
    assert config.model.hf_checkpoint == "/models/a model"
    assert config.data.prompt_data == "/data/train.jsonl@[0:100]"


@pytest.mark.parametrize(
    ("environment", "engines", "prefill"),
    [
        ({"NUM_GPUS": "0"}, 2, 1),
        ({"NUM_GPUS": "8", "GPUS_PER_ENGINE": "2"}, 4, 1),
        ({"NUM_GPUS": "8", "PREFILL_SERVERS": "3", "TRANSFER_BACKEND": "nixl"}, 8, 3),
    ],
)
def test_engines_are_divided_into_prefill_and_decode(environment: dict[str, str], engines: int, prefill: int) -> None:
    config = train_config(dry_run("run-pd.sh", **{**JOB, **environment}))
    assert (config.topology.num_engines, config.topology.prefill_num_servers) == (engines, prefill)
    backend = config.engines.sglang_args.get("disaggregation_transfer_backend")
    assert backend == environment.get("TRANSFER_BACKEND")


def test_a_pair_needs_two_engines() -> None:
    with pytest.raises(AssertionError, match="needs a prefill and a decode server"):
        dry_run("run-pd.sh", **{**JOB, "NUM_GPUS": "1"})


def test_a_ray_job_waits_for_all_nodes_and_carries_the_environment() -> None:
    output = dry_run("run-ray-job.sh", **JOB, PYTHONPATH="/patches", FORWARD_ENV="MY_SETTING", MY_SETTING="x")
    config = train_config(output)
    assert config.topology.actor_num_nodes == 2
    submit = next(shlex.split(line) for line in output.splitlines() if line.startswith("ray job submit"))
    runtime_env = next(word for word in submit if word.startswith("--runtime-env-json="))
    assert f"{REPO}:/patches" in runtime_env
    assert '"MY_SETTING": "x"' in runtime_env


def test_a_swe_agent_job_makes_prompts_and_carries_the_executor() -> None:
    output = dry_run("run-swe-agent.sh", **JOB, SWE_EXECUTOR="docker", RUN_DIR="/runs/swe")
    config = train_config(output)
    assert config.data.prompt_data == "/runs/swe/prompts.jsonl"
    assert config.rollouts.custom_agent_function_path == "examples/swe-agent/swe_bench.py:run"
    assert "--instances /data/swe.jsonl --repos /data/repos --out /runs/swe/prompts.jsonl" in output
    assert '"SWE_EXECUTOR": "docker"' in output.replace("\\", "")


@pytest.mark.parametrize("launcher", [path.name for path in LAUNCHERS])
def test_secrets_are_not_printed(launcher: str) -> None:
    output = dry_run(launcher, **JOB)
    assert "a-ray-token" not in output
    assert "a-wandb-key" not in output


@pytest.mark.parametrize("launcher", [path.name for path in LAUNCHERS])
def test_help_says_what_it_reads(launcher: str) -> None:
    done = subprocess.run(
        [REPO / "launchers" / launcher, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"launchers/{launcher}" in done.stdout
    assert "SBATCH" not in done.stdout


def test_the_examples_script_has_help_too() -> None:
    script = REPO / "examples" / "swe-agent" / "imitate.sh"
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "imitate.sh RUN_DIR" in done.stdout


@pytest.mark.parametrize("launcher", ["run-local.sh", "run-ray-job.sh"])
def test_a_missing_variable_is_named(launcher: str) -> None:
    environment = {name: value for name, value in JOB.items() if name != "PROMPT_DATA"}
    done = subprocess.run(
        [REPO / "launchers" / launcher, "--dry-run"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "set PROMPT_DATA: " in done.stderr


def test_no_launcher_ends_what_it_did_not_start() -> None:
    for path in [*LAUNCHERS, REPO / "launchers" / "common.sh"]:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        for broad in ("pkill", "killall", "ray stop"):
            assert broad not in code, f"{path.name}: {broad}"


@pytest.mark.parametrize("given", [("--wandb-key", "sekret"), ("--wandb-key=sekret",)])
@pytest.mark.parametrize("launcher", ["run-local.sh", "run-ray-job.sh"])
def test_a_key_is_not_printed(launcher: str, given: tuple[str, ...]) -> None:
    output = dry_run(launcher, *given, **{**JOB, "NUM_GPUS": "1"})
    assert "sekret" not in output
    assert "redacted" in output


NUMBERS = {"run-env.sh": ("NUM_GPUS", "HELD_OUT"), "run-kubernetes.sh": ("NUM_NODES", "NUM_GPUS")}


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "1 2", "PATH[$(echo run >&2)]"])
@pytest.mark.parametrize("launcher", NUMBERS)
def test_a_number_that_is_none_is_named_and_run_by_nobody(launcher: str, value: str) -> None:
    for name in NUMBERS[launcher]:
        with pytest.raises(AssertionError, match=f"{name}={re.escape(value)}: expected a whole number"):
            dry_run(launcher, **{**JOB, "CLAIM": "runs", name: value})


@pytest.mark.parametrize("launcher", ["run-kubernetes.sh", "run-skypilot.sh", "run-ray-job.sh"])
def test_no_secret_is_forwarded_or_written(launcher: str) -> None:
    with pytest.raises(AssertionError, match="FORWARD_ENV: MY_TOKEN would be read"):
        dry_run(launcher, **{**JOB, "FORWARD_ENV": "MY_TOKEN", "MY_TOKEN": "a-secret"})
    for words in (["--wandb-key", "a-secret"], ["--wandb-key=a-secret"]):
        if launcher == "run-ray-job.sh":
            assert "a-secret" not in dry_run(launcher, *words, **JOB)
        else:
            with pytest.raises(AssertionError, match="a manifest holds no secret"):
                dry_run(launcher, *words, **JOB)


NASTY = "a b'c\"d$(touch x)`id`;\n- x: y # z\t\\ {{}} {command} %s \u00e9"


@pytest.mark.parametrize("launcher", ["run-kubernetes.sh", "run-skypilot.sh"])
def test_a_manifest_holds_each_word_as_it_was_given(launcher: str) -> None:
    given = {**JOB, "HF_CHECKPOINT": NASTY, "RUN_DIR": f"/shared/{NASTY}"}
    told = yaml.safe_load(dry_run(launcher, "--wandb-group", NASTY, **given))
    if launcher == "run-kubernetes.sh":
        words = shlex.split(told["spec"]["entrypoint"])
        assert [words[words.index(flag) + 1] for flag in ("--hf-checkpoint", "--run-dir")] == [
            NASTY,
            f"/shared/{NASTY}",
        ]
        assert words[-1] == NASTY
    else:
        assert told["envs"]["HF_CHECKPOINT"] == NASTY
        assert shlex.quote(NASTY) in told["run"]
