# shellcheck shell=bash disable=SC2034  # read by launchers/common.sh
# A 4B dense model (Qwen3-4B) on one node of 8 x 80 GB: every GPU trains and serves.
# Trainer: 8 GB of states, 9 GB for a sample of 32,768 tokens with recomputation. Engines: 0.6 of each GPU, 8 GB of
# weights and 40 GB of cache, about 270,000 tokens.
RECIPE_NODES=1
ROLLOUT_ARGS+=(--rollout-batch-size 32 --max-seq-len 32768 --rollout-max-response-len 8192)
PERF_ARGS=(
  --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --colocate
  --gradient-checkpointing --use-dynamic-batch-size --max-tokens-per-gpu 32768
)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.6 --update-weight-transfer-mode tensor)
