#!/usr/bin/env bash
# What the launchers share; sourced, never run. Needs `set -euo pipefail` in the caller.
#
#   take_common_args "$@"     --dry-run and --help; everything else ends up in EXTRA_ARGS, last on the command line
#   run CMD...                runs CMD; with --dry-run prints it instead
#   attend CMD...             the same, heeding signals to the launcher while CMD runs
#   start CMD...              the same in the background; what it started is ended when the launcher ends
#   show_env NAME...          with --dry-run prints these variables, secrets redacted
#   node_args, train_here     fill the arrays below, and run them, for a run on this node
#   job_args                  fills the arrays below for a job on several nodes
#   train_args                joins the arrays below into TRAIN_ARGS, after RECIPE=NAME of launchers/recipes changed them
#   runtime_env_json          Ray's runtime environment, as JSON
#   use_ray_token             makes sure that Ray's token is in RAY_AUTH_TOKEN; never prints it

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$REPO/.venv}
[[ -x "$VENV/bin/python" ]] && PATH="$VENV/bin:$PATH"
export PATH PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"
# Python prints a line when it happens. Ray's nodes end at once when told to, its jobs may take time to save.
export PYTHONUNBUFFERED=1 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-0}
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-15}

DRY_RUN=${DRY_RUN:-0}
EXTRA_ARGS=()
CKPT_ARGS=() ROLLOUT_ARGS=() EVAL_ARGS=() PERF_ARGS=() GRPO_ARGS=()
OPTIMIZER_ARGS=() SGLANG_ARGS=() WANDB_ARGS=() MISC_ARGS=()

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
fail() { say "$*"; exit 1; }

# The comment block at the head of the launcher is its help.
usage() { sed -n '2,/^[^#]/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "$0"; }

take_common_args() {
  while (($#)); do
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      -h | --help) usage; exit 0 ;;
      *) EXTRA_ARGS+=("$1") ;;
    esac
    shift
  done
  local name
  whole NUM_NODES 1
  whole NUM_GPUS 0
  whole HELD_OUT 0
  for name in PREFILL_SERVERS DECODE_SERVERS GPUS_PER_ENGINE RAY_PORT RAY_DASHBOARD_PORT START_SECONDS; do whole "$name" 1; done
  local forward
  read -ra forward <<<"${FORWARD_ENV:-}"
  for name in "${forward[@]}"; do
    case $name in
      *TOKEN | *KEY | *SECRET | *PASSWORD) fail "FORWARD_ENV: $name would be read by all who see Ray's dashboard" ;;
    esac
  done
}

# whole NAME LEAST: stops when the variable NAME is set, and to something else than a whole number of at least LEAST.
whole() {
  local value=${!1:-$2}
  { [[ $value =~ ^[0-9]{1,9}$ ]] && ((10#$value >= $2)); } || fail "$1=$value: expected a whole number of at least $2"
}

# no_secret WORD...: stops at a flag whose value is a secret; a manifest is printed, and kept by who reads it.
no_secret() {
  local word
  for word; do
    case $word in --wandb-key | --wandb-key=*) fail "--wandb-key: a manifest holds no secret. Name WANDB_API_KEY's: see --help" ;; esac
  done
}

# need NAME WHAT: stops when the variable NAME is empty.
need() { [[ -n "${!1:-}" ]] || fail "set $1: $2"; }

# need_command NAME HOW: stops when the command does not exist; a dry run may be made anywhere.
need_command() { ((DRY_RUN)) || command -v "$1" >/dev/null || fail "'$1' not found: $2"; }

# quote CMD...: prints it as a shell reads it, without the key of wandb.
quote() {
  local word before=
  for word; do
    case $before in --wandb-key) word='<redacted>' ;; esac
    case $word in --wandb-key=*) word='--wandb-key=<redacted>' ;; esac
    before=$word
    printf '%q ' "$word"
  done
  printf '\n'
}

run() {
  if ((DRY_RUN)); then quote "$@"; else "$@"; fi
}

FIRST_STARTED=
start() {
  if ((DRY_RUN)); then
    printf '%s &\n' "$(quote "$@")"
  else
    "$@" &
    FIRST_STARTED=${FIRST_STARTED:-$!}
  fi
}

# attend CMD...: runs CMD and waits for it, as run does, but a signal to the launcher is heeded while CMD still runs.
attend() {
  if ((DRY_RUN)); then quote "$@"; return; fi
  local code=0
  "$@" &
  wait $! || code=$?
  return "$code"
}

# end PID...: ends these processes, which we started, and waits at most 20 s before it insists.
end() {
  (($#)) || return 0
  kill -TERM "$@" 2>/dev/null || true
  for _ in {1..200}; do
    kill -0 "$@" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$@" 2>/dev/null || true
}

# The last first. The shell knows of all of them, also of one that a signal came right after.
end_started() {
  local pid
  for pid in $(jobs -p | tac); do end "$pid"; done
}

# Ctrl-C and SIGTERM end the launcher, and its end ends what it started.
end_with_me() {
  trap 'on_exit' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}
on_exit() { end_started; }

show_env() {
  local name
  ((DRY_RUN)) || return 0
  for name; do
    [[ -n "${!name:-}" ]] || continue
    case $name in
      *TOKEN | *KEY | *SECRET | *PASSWORD) printf 'export %s=<redacted>\n' "$name" ;;
      *) printf 'export %s=%q\n' "$name" "${!name}" ;;
    esac
  done
}

# job_args: the arrays of a job on NUM_NODES nodes of NUM_GPUS GPUs each, in RUN_DIR.
job_args() {
  need HF_CHECKPOINT "the model folder"
  need PROMPT_DATA "the JSONL file of prompts"
  need AGENT_FUNCTION "dotted path or file.py:name of the agent function"
  CKPT_ARGS=(--hf-checkpoint "$HF_CHECKPOINT" --save "$RUN_DIR/checkpoints" --load "$RUN_DIR/checkpoints" --save-interval 20)
  ROLLOUT_ARGS=(
    --prompt-data "$PROMPT_DATA" --rollout-shuffle --custom-agent-function-path "$AGENT_FUNCTION"
    --num-rollout 500 --rollout-batch-size 32 --n-samples-per-prompt 8
    --rollout-max-response-len 8192 --max-seq-len 32768 --rollout-temperature 1.0 --num-agent-workers 8
  )
  PERF_ARGS=(
    --actor-num-nodes "$NUM_NODES" --actor-num-gpus-per-node "$NUM_GPUS" --num-gpus-per-node "$NUM_GPUS" --colocate
    --use-dynamic-batch-size --max-tokens-per-gpu 32768
  )
  GRPO_ARGS=(--advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --use-tis)
  OPTIMIZER_ARGS=(--lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98)
  SGLANG_ARGS=(--rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.7)
  WANDB_ARGS=(--use-wandb --wandb-project miles_lite --wandb-group "$(basename "$RUN_DIR")")
  MISC_ARGS=(--run-dir "$RUN_DIR" --bind-host "${BIND_HOST:-0.0.0.0}" --num-session-servers "$NUM_NODES")
}

# node_args: all arrays but those of rollouts and evaluation, of a run on this node, in RUN_DIR.
node_args() {
  need_command miles-lite "run scripts/setup-cpu.sh, or pip install --no-deps . in the cluster's image"
  NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
  CKPT_ARGS=(
    --hf-checkpoint "$HF_CHECKPOINT"
    --save "$RUN_DIR/checkpoints"
    --load "$RUN_DIR/checkpoints"
    --save-interval 20
  )
  if ((NUM_GPUS > 0)); then
    PERF_ARGS=(--actor-num-gpus-per-node "$NUM_GPUS" --num-gpus-per-node "$NUM_GPUS" --colocate)
    PERF_ARGS+=(--use-dynamic-batch-size --max-tokens-per-gpu 16384)
    SGLANG_ARGS=(--rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.7)
  else
    PERF_ARGS=(--device cpu --actor-num-gpus-per-node 2 --colocate)
  fi
  GRPO_ARGS=(--advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28)
  OPTIMIZER_ARGS=(--lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98)
  WANDB_ARGS=(--use-wandb --wandb-mode "${WANDB_MODE:-offline}" --wandb-group "$(basename "$RUN_DIR")")
  MISC_ARGS=(--run-dir "$RUN_DIR")
}

# train_here: trains on this node with the arrays, and RECIPE's.
train_here() {
  train_args
  show_env PYTHONPATH CUDA_DEVICE_MAX_CONNECTIONS WANDB_API_KEY
  if ((DRY_RUN)); then quote miles-lite train "${TRAIN_ARGS[@]}"; else exec miles-lite train "${TRAIN_ARGS[@]}"; fi
}

# take_recipe: the file that RECIPE names changes the arrays. NUM_NODES, where a launcher has it, must be the recipe's.
take_recipe() {
  [[ -n "${RECIPE:-}" ]] || return 0
  local file="$REPO/launchers/recipes/$RECIPE.sh" known
  known=$(cd "$REPO/launchers/recipes" && printf '%s ' *.sh)
  [[ -f "$file" ]] || fail "RECIPE=$RECIPE: there are ${known//.sh/}"
  # shellcheck source=/dev/null
  source "$file"
  ((${NUM_NODES:-1} == RECIPE_NODES)) || fail "RECIPE=$RECIPE is for $RECIPE_NODES nodes, and here are ${NUM_NODES:-1}"
}

train_args() {
  take_recipe
  # shellcheck disable=SC2034  # the launcher reads it
  TRAIN_ARGS=(
    "${CKPT_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${EVAL_ARGS[@]}" "${PERF_ARGS[@]}" "${GRPO_ARGS[@]}"
    "${OPTIMIZER_ARGS[@]}" "${SGLANG_ARGS[@]}" "${WANDB_ARGS[@]}" "${MISC_ARGS[@]}" "${EXTRA_ARGS[@]}"
  )
}

# Variables that every process of a job gets, on every node; add more with FORWARD_ENV="NAME NAME".
# Secrets do not belong here: a runtime environment can be read in the Ray dashboard.
JOB_ENV=(PYTHONPATH PYTHONUNBUFFERED CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME
  OMP_NUM_THREADS HF_HOME HF_HUB_OFFLINE)

runtime_env_json() {
  local forward
  read -ra forward <<<"${FORWARD_ENV:-}"
  python3 -c '
import json, os, sys
print(json.dumps({"env_vars": {name: os.environ[name] for name in sys.argv[1:] if name in os.environ}}))
' "${JOB_ENV[@]}" "${forward[@]}"
}

# Ray's token authentication stays on. The token is the caller's (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH), else the one of
# ~/.ray/auth_token, which is made when there is none. It travels in the environment, never on a command line.
use_ray_token() {
  export RAY_AUTH_MODE=token
  ((DRY_RUN)) && return 0
  RAY_AUTH_TOKEN=$(ray get-auth-token --generate 2>/dev/null) || fail "Ray has no authentication token and could not make one"
  export RAY_AUTH_TOKEN
}

# How many GPUs this machine has; 0 without nvidia-smi.
count_gpus() { nvidia-smi --list-gpus 2>/dev/null | wc -l || true; }
