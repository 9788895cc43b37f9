#!/usr/bin/env bash
# Trains a SWE agent end to end on a machine without a GPU: makes tasks and a small model, warm-starts the model to
# the task's format, then GRPO on the hidden tests' verdict.
#
#   launchers/quickstart.sh [--dry-run] [miles-lite flags...]       later flags win over those below
#
# SEED       seed of tasks, model, sampling and training (default 0)
# RUN_DIR    folder for everything the run writes (default runs/quickstart)
#
# Tasks and model are made once per RUN_DIR and SEED. An interrupted run goes on with:
#   launchers/quickstart.sh --load RUN_DIR/checkpoints
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"
need_command miles-lite "run scripts/setup-cpu.sh first, or use: make quickstart"

SEED=${SEED:-0}
RUN_DIR=${RUN_DIR:-runs/quickstart}
EXAMPLE=examples/swe-agent
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false WANDB_SILENT=true

# ---- the recipe ------------------------------------------------------------------------------------------------
TRAIN_TASKS=96 HELDOUT_TASKS=48 TRANSCRIPTS=1024
CHANCE=0.25

CKPT_ARGS=(--hf-checkpoint "$RUN_DIR/model" --save "$RUN_DIR/checkpoints" --save-interval 20)
ROLLOUT_ARGS=(
  --prompt-data "$RUN_DIR/data/train.jsonl"
  --rollout-shuffle
  --custom-agent-function-path "$EXAMPLE/agent.py:run"
  --num-rollout 60
  --rollout-batch-size 16
  --n-samples-per-prompt 8
  --rollout-max-response-len 96
  --rollout-max-context-len 2048
  --rollout-temperature 1.0
  --rollout-timeout 120
  --rollout-seed "$SEED"
)
EVAL_ARGS=(--eval-interval 20 --eval-prompt-data heldout "$RUN_DIR/data/heldout.jsonl" --n-samples-per-eval-prompt 2)
PERF_ARGS=(
  --device cpu
  --actor-num-gpus-per-node 2
  --rollout-num-gpus 1
  --colocate
  --use-dynamic-batch-size
  --max-tokens-per-gpu 8192
  --num-steps-per-rollout 2
)
GRPO_ARGS=(--advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28)
OPTIMIZER_ARGS=(--lr 5e-4 --weight-decay 0.0 --adam-beta1 0.9 --adam-beta2 0.98 --clip-grad 1.0 --seed "$SEED")
SGLANG_ARGS=(--sglang-server-concurrency 64)
WANDB_ARGS=(--use-wandb --wandb-mode offline --wandb-project miles_lite --wandb-group quickstart)
MISC_ARGS=(--run-dir "$RUN_DIR" --reward-chance "$CHANCE")
# ----------------------------------------------------------------------------------------------------------------

# Everything the training starts from. The model of one seed is not another's.
prepare() {
  local stamp="$RUN_DIR/model/.seed-$SEED"
  [[ -f "$stamp" ]] && { say "model and tasks of seed $SEED are in $RUN_DIR"; return 0; }
  run mkdir -p "$RUN_DIR"
  run rm -f "$RUN_DIR"/model/.seed-*
  run python3 "$EXAMPLE/make_tasks.py" --out "$RUN_DIR/data" --train "$TRAIN_TASKS" --heldout "$HELDOUT_TASKS" --seed "$SEED"
  run python3 "$EXAMPLE/transcripts.py" --tasks "$RUN_DIR/data/train.jsonl" --out "$RUN_DIR/data/transcripts.jsonl" \
    --count "$TRANSCRIPTS" --seed "$SEED"
  run miles-lite init-model --out "$RUN_DIR/model" --transcripts "$RUN_DIR/data/transcripts.jsonl" --seed "$SEED"
  run touch "$stamp"
}

train_args
show_env PYTHONPATH OMP_NUM_THREADS TOKENIZERS_PARALLELISM
prepare
if ((DRY_RUN)); then quote miles-lite train "${TRAIN_ARGS[@]}"; else exec miles-lite train "${TRAIN_ARGS[@]}"; fi
