# shellcheck shell=bash disable=SC2034  # read by launchers/common.sh
# A 30B-A3B mixture of experts (Qwen3-30B-A3B) on two nodes of 8 x 80 GB: engines give their memory back while the
# trainer works. Trainer: 31 GB of states a GPU, 3 GB of two layers, 9 GB for a sample of 32,768 tokens with
# recomputation. Engines of two GPUs: 0.8 of each, 31 GB of weights and 33 GB of cache, about 670,000 tokens an engine.
# Experts are replayed.
RECIPE_NODES=2
ROLLOUT_ARGS+=(--rollout-batch-size 64 --max-seq-len 32768 --rollout-max-response-len 8192)
PERF_ARGS=(
  --actor-num-nodes 2 --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --colocate --offload-rollout
  --gradient-checkpointing --use-dynamic-batch-size --max-tokens-per-gpu 32768
)
GRPO_ARGS+=(--use-rollout-routing-replay)
SGLANG_ARGS=(--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.8 --update-weight-transfer-mode distributed)
