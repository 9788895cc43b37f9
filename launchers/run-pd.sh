#!/usr/bin/env bash
# Trains on this node with engines in two roles: some prefill prompts, the others decode, and caches move between them.
#
#   launchers/run-pd.sh [--dry-run] [miles-lite flags...]           later flags win over those below
#
# PREFILL_SERVERS    engines that prefill (default 1)
# DECODE_SERVERS     engines that decode (default 1, on GPUs: all others)
# GPUS_PER_ENGINE    GPUs per engine (default 1)
# TRANSFER_BACKEND   how caches move (default: SGLang's own choice on GPUs, mooncake_tcp on CPU)
#
# Everything else is run-local.sh's: HF_CHECKPOINT, PROMPT_DATA, AGENT_FUNCTION, EVAL_DATA, RUN_DIR, NUM_GPUS, WANDB_MODE.
# On CPU it needs the package mooncake-transfer-engine-non-cuda and the libraries libibverbs1 and libnl-route-3-200.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"

export DRY_RUN NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
PREFILL_SERVERS=${PREFILL_SERVERS:-1}
GPUS_PER_ENGINE=${GPUS_PER_ENGINE:-1}
if ((NUM_GPUS > 0)); then
  DECODE_SERVERS=${DECODE_SERVERS:-$((NUM_GPUS / GPUS_PER_ENGINE - PREFILL_SERVERS))}
else
  DECODE_SERVERS=${DECODE_SERVERS:-1}
fi
((PREFILL_SERVERS > 0 && DECODE_SERVERS > 0)) ||
  fail "needs a prefill and a decode server: $NUM_GPUS GPUs, $GPUS_PER_ENGINE per engine, PREFILL_SERVERS=$PREFILL_SERVERS, DECODE_SERVERS=$DECODE_SERVERS"

PD_ARGS=(
  --prefill-num-servers "$PREFILL_SERVERS"
  --rollout-num-gpus-per-engine "$GPUS_PER_ENGINE"
  --rollout-num-gpus "$(((PREFILL_SERVERS + DECODE_SERVERS) * GPUS_PER_ENGINE))"
)
[[ -z "${TRANSFER_BACKEND:-}" ]] || PD_ARGS+=(--sglang-disaggregation-transfer-backend "$TRANSFER_BACKEND")
exec "$REPO/launchers/run-local.sh" "${PD_ARGS[@]}" "${EXTRA_ARGS[@]}"
