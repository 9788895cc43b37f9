# shellcheck shell=bash disable=SC1090,SC2034  # read by launchers/common.sh
# 4b-2x8gpu-separate, with rollouts that go on while the trainer trains.
# Tokens are at most two steps old; an update costs running requests a pause, and TIS weighs what is older.
source "${BASH_SOURCE[0]%-async.sh}-separate.sh"
ROLLOUT_ARGS+=(--max-weight-staleness 2)
SGLANG_ARGS+=(--pause-generation-mode in_place)
GRPO_ARGS+=(--use-tis)
