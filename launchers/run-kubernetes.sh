#!/usr/bin/env bash
# Trains on Kubernetes: renders a RayJob for KubeRay (1.5.1 or later) and applies it with kubectl.
#
#   launchers/run-kubernetes.sh [--dry-run] [miles-lite flags...]         --dry-run prints the manifest
#
# HF_CHECKPOINT      Hugging Face model folder, below /shared or in the image
# PROMPT_DATA        JSONL file of prompts, below /shared or in the image
# AGENT_FUNCTION     dotted path or file.py:name of the agent function, in the image or below /shared
# IMAGE              image with SGLang, Ray and miles_lite (`pip install --no-deps .` in SGLang's own)
# CLAIM              PersistentVolumeClaim that every node mounts at /shared (ReadWriteMany)
# NAME               of the RayJob (default miles-lite)
# RUN_DIR            folder for everything the run writes (default /shared/runs/NAME)
# NUM_NODES          nodes, the head among them (1); NUM_GPUS (8), NUM_CPUS (64), MEMORY (512Gi) of each
# RECIPE             a model size and layout of launchers/recipes, such as 4b-8gpu-colocated
# SECRET             Secret whose keys the nodes get as variables, such as WANDB_API_KEY
# BIND_HOST          interface of engines, router and sessions (default 0.0.0.0)
# FORWARD_ENV        names of more variables that every process of the job gets
#
# KubeRay makes Ray's token, and gives it to every node. The namespace is kubectl's own (`kubectl config`). The nodes go
# 10 minutes after the job has ended; `kubectl delete rayjob NAME` ends it before: it gets SIGTERM and a minute to save.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"

no_secret "${EXTRA_ARGS[@]}"
whole NUM_GPUS 1
need IMAGE "the image that nodes run, with miles_lite installed"
need CLAIM "the PersistentVolumeClaim that every node mounts at /shared"
need_command kubectl "install it, or use --dry-run and apply the manifest elsewhere"
export NAME=${NAME:-miles-lite} NUM_NODES=${NUM_NODES:-1} NUM_GPUS=${NUM_GPUS:-8} NUM_CPUS=${NUM_CPUS:-64} MEMORY=${MEMORY:-512Gi}
export IMAGE CLAIM SECRET=${SECRET:-}
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
RUN_DIR=${RUN_DIR:-/shared/runs/$NAME}
# The paths of this machine are not the image's.
JOB_ENV=(PYTHONUNBUFFERED CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE)
job_args
train_args
RUNTIME_ENV=$(runtime_env_json)
export RUNTIME_ENV
render() { python3 launchers/manifests.py kubernetes miles-lite train "${TRAIN_ARGS[@]}"; }

if ((DRY_RUN)); then
  render
else
  render | kubectl apply -f -
  say "kubectl get rayjob $NAME; kubectl logs --follow --selector job-name=$NAME; kubectl delete rayjob $NAME"
fi
