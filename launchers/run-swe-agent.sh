#!/usr/bin/env bash
# Trains a SWE agent on several nodes, on instances in SWE-bench's format; a Ray job as in run-ray-job.sh.
#
#   launchers/run-swe-agent.sh [--dry-run] [miles-lite flags...]              on the head node
#
# INSTANCES          JSONL file of instances
# REPOS              folder of git repositories, OWNER__NAME for each repo, the same path on every node
# SWE_EXECUTOR       where commands run: apptainer (default), docker, podman, bwrap or local, on every node; or the URL of
#                    a machine that serves sandboxes
# SWE_IMAGES         folder of .sif files for Apptainer (default: pulled from docker://swebench/...)
# RUN_DIR            folder for everything the run writes, seen by every node (default runs/swe-agent)
# and what run-ray-job.sh reads, but PROMPT_DATA and AGENT_FUNCTION
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_common_args "$@"
cd "$REPO"

need INSTANCES "the JSONL file of instances in SWE-bench's format"
need REPOS "the folder of git repositories"
export RUN_DIR=${RUN_DIR:-runs/swe-agent} SWE_EXECUTOR=${SWE_EXECUTOR:-apptainer} DRY_RUN
case $SWE_EXECUTOR in
  apptainer | docker | podman) need_command "$SWE_EXECUTOR" "install it on every node, or choose another SWE_EXECUTOR" ;;
  bwrap) need_command bwrap "install bubblewrap on every node, or choose another SWE_EXECUTOR" ;;
  local | http://* | https://*) ;;
  *) fail "SWE_EXECUTOR=$SWE_EXECUTOR: there are apptainer, docker, podman, bwrap, local, and http://HOST:PORT" ;;
esac
export PROMPT_DATA="$RUN_DIR/prompts.jsonl" AGENT_FUNCTION=examples/swe-agent/swe_bench.py:run
export FORWARD_ENV="SWE_EXECUTOR SWE_IMAGES ${FORWARD_ENV:-}"

run mkdir -p "$RUN_DIR"
# shellcheck disable=SC2153  # `need` has seen to it that REPOS is set
run python3 examples/swe-agent/swe_bench.py --instances "$INSTANCES" --repos "$REPOS" --out "$PROMPT_DATA"
show_env SWE_EXECUTOR SWE_IMAGES
exec "$REPO/launchers/run-ray-job.sh" --tito-allowed-append-roles tool user --rollout-timeout 3600 "${EXTRA_ARGS[@]}"
