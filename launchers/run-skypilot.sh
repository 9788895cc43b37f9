#!/usr/bin/env bash
# Trains on nodes that SkyPilot brings: renders a task whose first node is run-ray-job.sh's head, the others its workers.
#
#   launchers/run-skypilot.sh [--dry-run] [miles-lite flags...]           --dry-run prints the task
#
# HF_CHECKPOINT      Hugging Face model folder, the same path on every node
# PROMPT_DATA        JSONL file of prompts, the same path on every node
# AGENT_FUNCTION     dotted path or file.py:name of the agent function
# IMAGE              image with SGLang and Ray; SETUP installs miles_lite in it (default: pip install --no-deps .)
# NAME               of the cluster and the task (default miles-lite)
# VOLUME             SkyPilot volume that every node mounts at /shared; needed where NUM_NODES is above 1
# RUN_DIR            folder for everything the run writes (default /shared/runs/NAME)
# NUM_NODES          nodes (1); NUM_GPUS of each (8); ACCELERATOR (H100)
# RECIPE             a model size and layout of launchers/recipes, such as 4b-8gpu-colocated
# SECRETS            names of secrets that are given on besides RAY_AUTH_TOKEN (default: WANDB_API_KEY where it is set)
# FORWARD_ENV        names of more variables that every process of the job gets
#
# The repository goes along as the task's working directory. Ray's token is the caller's, as with run-ray-job.sh.
# `sky down NAME` gives the nodes back.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"

no_secret "${EXTRA_ARGS[@]}"
for name in HF_CHECKPOINT PROMPT_DATA AGENT_FUNCTION IMAGE; do need "$name" "see --help"; done
need_command sky "pip install skypilot in an environment of its own, or use --dry-run"
export HF_CHECKPOINT PROMPT_DATA AGENT_FUNCTION IMAGE VOLUME=${VOLUME:-} RECIPE=${RECIPE:-} FORWARD_ENV=${FORWARD_ENV:-}
export NAME=${NAME:-miles-lite} NUM_NODES=${NUM_NODES:-1} NUM_GPUS=${NUM_GPUS:-8} ACCELERATOR=${ACCELERATOR:-H100}
((NUM_NODES == 1)) || need VOLUME "the SkyPilot volume that every node mounts at /shared"
export RUN_DIR=${RUN_DIR:-/shared/runs/$NAME} SETUP=${SETUP:-pip install --no-deps .}
use_ray_token
export SECRETS="RAY_AUTH_TOKEN ${SECRETS:-${WANDB_API_KEY:+WANDB_API_KEY}}"
render() { python3 launchers/manifests.py skypilot launchers/run-ray-job.sh head "${EXTRA_ARGS[@]}"; }

# What the first node will run is looked at here, where it costs nothing.
DRY_RUN=1 MASTER_ADDR=127.0.0.1 WORKER_HOSTS='' launchers/run-ray-job.sh head --dry-run "${EXTRA_ARGS[@]}" >/dev/null
if ((DRY_RUN)); then
  render
else
  TASK=$(mktemp --suffix .yaml)
  trap 'rm -f "$TASK"' EXIT
  render >"$TASK"
  SECRET_FLAGS=()
  for name in $SECRETS; do SECRET_FLAGS+=(--secret "$name"); done
  sky launch --cluster "$NAME" "${SECRET_FLAGS[@]}" "$TASK"
fi
