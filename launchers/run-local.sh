#!/usr/bin/env bash
# Trains on this node with a real checkpoint and dataset; Ray starts and ends with the run.
#
#   launchers/run-local.sh [--dry-run] [miles-lite flags...]        later flags win over those below
#
# HF_CHECKPOINT      Hugging Face model folder
# PROMPT_DATA        JSONL file of prompts
# AGENT_FUNCTION     dotted path or file.py:name of async run(base_url, prompt, request_kwargs, metadata, **kw) -> dict
# EVAL_DATA          JSONL file of held-out prompts (default: no evaluation)
# RUN_DIR            folder for everything the run writes (default runs/local); an interrupted run there is continued
# NUM_GPUS           GPUs to train and generate on (default: counted); 0 trains on CPU
# RECIPE             a model size and layout of launchers/recipes, such as 4b-8gpu-colocated (default: colocated)
# WANDB_MODE         online, offline or disabled (default offline)
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"

need HF_CHECKPOINT "the model folder"
need PROMPT_DATA "the JSONL file of prompts"
need AGENT_FUNCTION "dotted path or file.py:name of the agent function"
RUN_DIR=${RUN_DIR:-runs/local}
node_args
ROLLOUT_ARGS=(
  --prompt-data "$PROMPT_DATA"
  --rollout-shuffle
  --custom-agent-function-path "$AGENT_FUNCTION"
  --num-rollout 200
  --rollout-batch-size 16
  --n-samples-per-prompt 8
  --rollout-max-response-len 4096
  --max-seq-len 16384
  --rollout-temperature 1.0
)
[[ -z "${EVAL_DATA:-}" ]] || EVAL_ARGS=(--eval-interval 20 --eval-prompt-data held_out "$EVAL_DATA")
train_here
