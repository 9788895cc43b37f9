#!/usr/bin/env bash
# Trains on this node in an environment (docs/environments.md), with a real checkpoint; Ray starts and ends with the run.
#
#   launchers/run-env.sh [--dry-run] [miles-lite flags...]        later flags win over those below
#
# HF_CHECKPOINT      Hugging Face model folder
# ENVIRONMENT        NAME[:ARGUMENT], as reasoning-gym:chain_sum, gem:game:GuessTheNumber-v0-easy, openenv:URL, ors:URL/NAME,
#                    verifiers:tcp://HOST:PORT, nemo-gym:URL, 'program:COMMAND' (docs/environments.md lists them)
# ENVIRONMENT_ARGS   what it is given, JSON or YAML (default: nothing)
# HELD_OUT           tasks of its split `test` that are held out (default 64); 0: no evaluation
# RUN_DIR            folder for everything the run writes (default runs/env); an interrupted run there is continued
# NUM_GPUS           GPUs to train and generate on (default: counted); 0 trains on CPU
# RECIPE             a model size and layout of launchers/recipes, such as 4b-8gpu-colocated (default: colocated)
# WANDB_MODE         online, offline or disabled (default offline)
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"

need HF_CHECKPOINT "the model folder"
need ENVIRONMENT "the environment's name, as reasoning-gym:chain_sum"
RUN_DIR=${RUN_DIR:-runs/env}
node_args
ROLLOUT_ARGS=(
  --environment "$ENVIRONMENT"
  --num-rollout 200
  --rollout-batch-size 16
  --n-samples-per-prompt 8
  --rollout-max-response-len 4096
  --max-seq-len 16384
  --rollout-temperature 1.0
)
[[ -z "${ENVIRONMENT_ARGS:-}" ]] || ROLLOUT_ARGS+=(--environment-args "$ENVIRONMENT_ARGS")
HELD_OUT=${HELD_OUT:-64}
((HELD_OUT == 0)) || EVAL_ARGS=(--eval-interval 20 --eval-prompt-data held_out "environment:test@[0:$HELD_OUT]")
train_here
