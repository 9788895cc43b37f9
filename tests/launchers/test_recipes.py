"""Recipes and manifests: what they would run, and that it fits where they say."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from miles_lite.config.options import Config, parse
from tests.launchers.helpers import JOB, REPO, dry_run, train_config
from tests.test_sizing import ROWS

RECIPES = sorted(path.stem for path in (REPO / "launchers" / "recipes").glob("*.sh"))
SNAPSHOTS = Path(__file__).parent / "snapshots"
"""UPDATE_SNAPSHOTS=1 writes them anew."""
GPU_GB = 80
IMAGE = {"IMAGE": "registry.example/miles-lite:1", "CLAIM": "runs", "VOLUME": "runs", "SECRET": "wandb"}
HERE = {"HF_CHECKPOINT": "/shared/model", "PROMPT_DATA": "/shared/train.jsonl", "AGENT_FUNCTION": "agent.py:run"}


def settings(recipe: str) -> dict[str, str]:
    nodes = "2" if "2x8" in recipe else "1"
    return {**HERE, "RECIPE": recipe, "NUM_NODES": nodes, "NUM_GPUS": "8", "RUN_DIR": "/shared/run", **IMAGE}


def snapshot(name: str, text: str) -> None:
    kept = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(text)
    assert text == kept.read_text()


def manifest(launcher: str, *arguments: str, **environment: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(dry_run(launcher, *arguments, **environment))
    return loaded


def entrypoint(recipe: str) -> str:
    return str(manifest("run-kubernetes.sh", **settings(recipe))["spec"]["entrypoint"])


@dataclass(frozen=True)
class Shape:
    """Of docs/sizing.md's table: billions of parameters, hidden size, layers, KV heads of 128."""

    billions: float
    hidden: int
    layers: int
    kv_heads: int


SHAPES = {row[0].split()[0].lower(): Shape(float(row[1]), *map(int, row[2:5])) for row in ROWS}


def trainer_gb(shape: Shape, config: Config) -> float:
    """What docs/sizing.md says one GPU of the trainer holds: states, two gathered layers, activations of the longest
    sample (recomputed, and one layer's), logits, weights on their way."""
    tokens = config.rollouts.max_seq_len
    assert tokens is not None
    assert config.compute.gradient_checkpointing
    activations = (2 * shape.hidden * shape.layers + 34 * shape.hidden) * tokens / 1e9
    return 16 * shape.billions / config.topology.world_size + 4 * shape.billions / shape.layers + activations + 1.3


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_on_its_gpus(recipe: str) -> None:
    config, _ = parse(shlex.split(entrypoint(recipe))[2:])
    shape = SHAPES[recipe.rpartition("-")[0].rpartition("-")[0]]
    place, share = config.topology, float(str(config.engines.sglang_args["mem_fraction_static"]))
    together = place.colocate and not config.updates.offload_rollout
    assert trainer_gb(shape, config) < GPU_GB * (1 - share * together) * 0.95
    weights = 2 * shape.billions / place.rollout_num_gpus_per_engine
    cached = 4 * shape.layers * shape.kv_heads * 128 / place.rollout_num_gpus_per_engine / 1e9
    assert weights + cached * 8 * (config.rollouts.max_seq_len or 0) < GPU_GB * share
    gpus = place.world_size + (0 if place.colocate else place.rollout_slots)
    assert gpus == 8 * (2 if "2x8" in recipe else 1)
    assert config.scheduling.overlaps == recipe.endswith("async")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_it_was(recipe: str) -> None:
    snapshot(recipe, entrypoint(recipe).replace(" --", "\n  --") + "\n")


def test_the_same_recipe_runs_on_one_node_and_as_a_ray_job() -> None:
    given = settings("4b-8gpu-async")
    local = train_config(dry_run("run-local.sh", **given))
    job = train_config(dry_run("run-ray-job.sh", **given))
    for config in (local, job):
        assert config.topology.world_size == config.topology.rollout_num_gpus == 4
        assert config.scheduling.staleness == 2


@pytest.mark.parametrize("launcher", ["run-kubernetes.sh", "run-skypilot.sh"])
def test_a_manifest_is_what_it_was_and_holds_no_secret(launcher: str) -> None:
    given = {**JOB, **settings("4b-2x8gpu-separate"), "FORWARD_ENV": "MY_SETTING", "MY_SETTING": "x y"}
    output = dry_run(launcher, "--lr", "2e-6", "--wandb-group", "a group", **given)
    assert "a-ray-token" not in output
    assert "a-wandb-key" not in output
    snapshot(launcher.removesuffix(".sh"), output)


def test_every_node_of_kubernetes_has_gpus_and_the_token() -> None:
    cluster = manifest("run-kubernetes.sh", **settings("4b-2x8gpu-separate"))["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 1
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared", "/dev/shm"}


def test_what_skypilot_runs_on_each_node_is_the_ray_job(tmp_path: Path) -> None:
    """Its script, with the launcher it calls replaced by one that says how it was called."""
    task = manifest("run-skypilot.sh", "--wandb-group", "a group", **{**JOB, **settings("4b-2x8gpu-separate")})
    (tmp_path / "launchers").mkdir()
    called = tmp_path / "launchers" / "run-ray-job.sh"
    called.write_text('#!/bin/bash\nprintf "%s|" "$MASTER_ADDR" "$NUM_NODES" "$NUM_GPUS" "${RAY_ADDRESS:-}" "$@"\n')
    called.chmod(0o755)
    told = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    said = [
        subprocess.run(
            ["bash", "-c", task["run"]],
            env={"PATH": os.environ["PATH"], **told, "SKYPILOT_NODE_RANK": rank, "RAY_ADDRESS": "skypilot's"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for rank in ("0", "1")
    ]
    assert said == ["10.0.0.1|2|8||head|--wandb-group|a group|", "10.0.0.1|2|8||worker|10.0.0.1:6379|"]
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None, "WANDB_API_KEY": None}


def test_a_recipe_for_other_nodes_is_refused_before_nodes_are_rented() -> None:
    with pytest.raises(AssertionError, match="is for 2 nodes, and here are 1"):
        dry_run("run-skypilot.sh", **{**settings("4b-2x8gpu-async"), "NUM_NODES": "1"})


@pytest.mark.parametrize(
    ("given", "said"),
    [({"RECIPE": "4b"}, "RECIPE=4b: there are 30b-a3b-2x8gpu-async "), ({"CLAIM": ""}, "set CLAIM: the Persistent")],
)
def test_what_is_wrong_is_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        dry_run("run-kubernetes.sh", **{**settings("4b-8gpu-colocated"), **given})


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_reads_the_manifest() -> None:
    named = subprocess.run(
        ["kubectl", "annotate", "--local", "-f", "-", "read=yes", "-o", "name"],  # without a cluster
        input=dry_run("run-kubernetes.sh", **settings("4b-8gpu-colocated")),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert named.stdout.strip() == "rayjob.ray.io/miles-lite"
