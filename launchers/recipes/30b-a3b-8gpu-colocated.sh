# shellcheck shell=bash disable=SC2034  # read by launchers/common.sh
# A 30B-A3B mixture of experts (Qwen3-30B-A3B) on one node of 8 x 80 GB: engines give their memory back while the
# trainer works. Trainer: 61 GB of states a GPU, 3 GB of two layers, 4 GB for a sample of 16,384 tokens with
# recomputation: it is tight. Engines of two GPUs: 0.75 of each, 31 GB of weights and 29 GB of cache, about 590,000
# tokens an engine. Experts are replayed.
RECIPE_NODES=1
ROLLOUT_ARGS+=(--rollout-batch-size 32 --max-seq-len 16384 --rollout-max-response-len 8192)
PERF_ARGS=(
  --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --colocate --offload-rollout
  --gradient-checkpointing --use-dynamic-batch-size --max-tokens-per-gpu 16384
)
GRPO_ARGS+=(--use-rollout-routing-replay)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.75 --update-weight-transfer-mode tensor)
