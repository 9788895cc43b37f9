"""Renders what Kubernetes and SkyPilot read, from a launcher's variables; the launchers run it.

    python3 launchers/manifests.py kubernetes COMMAND...     a RayJob of KubeRay (1.5.1 or later) that runs COMMAND
    python3 launchers/manifests.py skypilot COMMAND...       a SkyPilot task whose nodes run COMMAND, each with its part

Which variables it reads the launchers' --help says; secrets are named in what it prints, never written.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml

SHARED = "/shared"
TASK = """\
unset RAY_ADDRESS  # of SkyPilot's own Ray, which this one is not
export MASTER_ADDR=$(head -n1 <<<"$SKYPILOT_NODE_IPS")
export NUM_NODES=$SKYPILOT_NUM_NODES NUM_GPUS=$SKYPILOT_NUM_GPUS_PER_NODE
if [[ "$SKYPILOT_NODE_RANK" == 0 ]]; then
  {command}
else
  launchers/run-ray-job.sh worker "$MASTER_ADDR:6379"
fi
"""


def kubernetes(command: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    """The RayJob. The head is one of the nodes: it has GPUs as the others do, and the driver runs there."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": env["NAME"]},
        "spec": {
            "entrypoint": shlex.join(command),
            "runtimeEnvYAML": yaml.safe_dump(json.loads(env["RUNTIME_ENV"])),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 0,
            "rayClusterSpec": {
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": _pod("ray-head", env)},
                "workerGroupSpecs": [
                    {
                        "groupName": "nodes",
                        **{bound: int(env["NUM_NODES"]) - 1 for bound in ("replicas", "minReplicas", "maxReplicas")},
                        "rayStartParams": {},
                        "template": _pod("ray-worker", env),
                    }
                ],
            },
        },
    }


def _pod(name: str, env: dict[str, str]) -> dict[str, Any]:
    resources = {"cpu": env["NUM_CPUS"], "memory": env["MEMORY"], "nvidia.com/gpu": env["NUM_GPUS"]}
    container: dict[str, Any] = {
        "name": name,
        "image": env["IMAGE"],
        "resources": {"limits": resources, "requests": resources},
        "volumeMounts": [{"name": "shared", "mountPath": SHARED}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if env.get("SECRET"):
        container["envFrom"] = [{"secretRef": {"name": env["SECRET"]}}]
    volumes = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": env["CLAIM"]}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    return {"spec": {"terminationGracePeriodSeconds": 60, "containers": [container], "volumes": volumes}}


def skypilot(command: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    """The task: every node runs it, and finds in SkyPilot's variables which it is."""
    given = ("HF_CHECKPOINT", "PROMPT_DATA", "AGENT_FUNCTION", "RUN_DIR", "RECIPE", "FORWARD_ENV")
    given += tuple(env.get("FORWARD_ENV", "").split())
    return {
        "name": env["NAME"],
        "workdir": ".",
        "num_nodes": int(env["NUM_NODES"]),
        "resources": {"accelerators": f"{env['ACCELERATOR']}:{env['NUM_GPUS']}", "image_id": f"docker:{env['IMAGE']}"},
        **({"volumes": {SHARED: env["VOLUME"]}} if env.get("VOLUME") else {}),
        "envs": {name: env[name] for name in given if env.get(name)},
        "secrets": dict.fromkeys(env["SECRETS"].split()),
        "setup": env["SETUP"],
        "run": TASK.format(command=shlex.join(command)),
    }


class Readable(yaml.SafeDumper):
    """Without aliases, and with text of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Readable.add_representer(str, _text)


def main() -> None:
    kind, *command = sys.argv[1:]
    manifest = {"kubernetes": kubernetes, "skypilot": skypilot}[kind](command, dict(os.environ))
    yaml.dump(manifest, sys.stdout, Dumper=Readable, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
