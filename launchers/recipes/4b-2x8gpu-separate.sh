# shellcheck shell=bash disable=SC2034  # read by launchers/common.sh
# A 4B dense model (Qwen3-4B) on two nodes of 8 x 80 GB: one node trains, one serves, in turns.
# Trainer: 8 GB of states a GPU, 9 GB for a sample of 32,768 tokens with recomputation. Engines: 0.85 of each GPU,
# 8 GB of weights and 60 GB of cache, about 400,000 tokens. What idles is what the async recipe uses.
RECIPE_NODES=2
ROLLOUT_ARGS+=(--rollout-batch-size 64 --max-seq-len 32768 --rollout-max-response-len 8192)
PERF_ARGS=(
  --actor-num-nodes 1 --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --rollout-num-gpus 8
  --gradient-checkpointing --use-dynamic-batch-size --max-tokens-per-gpu 65536
)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.85 --update-weight-transfer-mode distributed)
