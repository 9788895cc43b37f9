# shellcheck shell=bash disable=SC2034  # read by launchers/common.sh
# A 30B-A3B mixture of experts (Qwen3-30B-A3B) on two nodes of 8 x 80 GB: one node trains, one serves, in turns.
# Trainer: 61 GB of states a GPU, 3 GB of two layers, 4 GB for a sample of 16,384 tokens with recomputation: it is
# tight. Engines of two GPUs: 0.85 of each, 31 GB of weights and 37 GB of cache, about 760,000 tokens an engine. Experts
# are replayed.
RECIPE_NODES=2
ROLLOUT_ARGS+=(--rollout-batch-size 64 --max-seq-len 16384 --rollout-max-response-len 8192)
PERF_ARGS=(
  --actor-num-nodes 1 --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --rollout-num-gpus 8
  --gradient-checkpointing --use-dynamic-batch-size --max-tokens-per-gpu 16384
)
GRPO_ARGS+=(--use-rollout-routing-replay)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.85 --update-weight-transfer-mode distributed)
