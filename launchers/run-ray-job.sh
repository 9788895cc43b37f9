#!/usr/bin/env bash
# Trains on several nodes: starts a Ray cluster, submits `miles-lite train` as a Ray job, ends the cluster again.
#
#   launchers/run-ray-job.sh [--dry-run] [miles-lite flags...]              on the head node
#   launchers/run-ray-job.sh worker HEAD_HOST:PORT [--dry-run]              on each other node, unless ssh starts it
#
# HF_CHECKPOINT      Hugging Face model folder, the same path on every node
# PROMPT_DATA        JSONL file of prompts
# AGENT_FUNCTION     dotted path or file.py:name of the agent function
# RUN_DIR            folder for everything the run writes, seen by every node (default runs/ray-job)
# MASTER_ADDR        the head's address as the other nodes see it (default: this host's first)
# WORKER_HOSTS       "host host ...": started by ssh, with this repository at the same path; SSH names another ssh
# NUM_NODES          how many nodes to wait for (default: 1 + WORKER_HOSTS)
# NUM_GPUS           GPUs per node (default: counted); NUM_CPUS: CPUs per node (default: counted by Ray)
# RAY_PORT           the head's port (6379); RAY_DASHBOARD_PORT (8265)
# RAY_START_ARGS     more flags for every `ray start`; RAY_HEAD_ARGS for the head's only
# START_SECONDS      how long to wait for the head and for the nodes (300)
# BIND_HOST          interface of engines, router and sessions (default 0.0.0.0)
# RECIPE             a model size and layout of launchers/recipes, such as 4b-8gpu-colocated (default: colocated)
# FORWARD_ENV        names of more variables that every process of the job gets
# ENTRYPOINT         another command than `miles-lite train ...`
#
# The token of Ray's authentication goes to the workers through ssh's standard input. Workers that are started by hand
# need it in RAY_AUTH_TOKEN or in ~/.ray/auth_token (`ray get-auth-token` on the head prints it).
# A worker ends when the head does. Nothing is ended that was not started here.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

START_SECONDS=${START_SECONDS:-300}
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}
read -ra RAY_NODE_ARGS <<<"--disable-usage-stats --num-gpus=$NUM_GPUS ${NUM_CPUS:+--num-cpus=$NUM_CPUS} ${RAY_START_ARGS:-}"

# until_true WHAT CMD...: waits for CMD to succeed, at most START_SECONDS.
until_true() {
  local what=$1 deadline=$((SECONDS + START_SECONDS))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || fail "waited $START_SECONDS s for $what. Look at the lines above, or set START_SECONDS higher."
    [[ -z "$FIRST_STARTED" ]] || kill -0 "$FIRST_STARTED" 2>/dev/null || fail "Ray ended while waiting for $what; the lines above are its own"
    sleep 1
  done
}

listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

run_worker() {
  local head=$1
  shift
  take_common_args "$@"
  end_with_me
  if [[ "${TOKEN_ON_STDIN:-0}" == 1 ]]; then
    ((DRY_RUN)) || IFS= read -r RAY_AUTH_TOKEN
    export RAY_AUTH_TOKEN
    exec 3<&0
  fi
  use_ray_token
  show_env RAY_AUTH_MODE RAY_AUTH_TOKEN PYTHONPATH
  ((DRY_RUN)) || until_true "the head at $head" listens "$head"
  start ray start --address="$head" --block "${RAY_NODE_ARGS[@]}"
  ((DRY_RUN)) && return
  # The end of the input is the end of the head: it holds the other side.
  if [[ "${TOKEN_ON_STDIN:-0}" == 1 ]]; then
    cat <&3 >/dev/null &
  fi
  wait -n || true
}

# Starts this script as a worker on a host. The variables a worker needs are on its command line, the token is not.
start_worker() {
  local host=$1 name command ssh
  read -ra ssh <<<"${SSH:-ssh -o BatchMode=yes -o ServerAliveInterval=30}"
  command="cd $(printf %q "$REPO") && TOKEN_ON_STDIN=1"
  for name in VENV PYTHONPATH NUM_GPUS NUM_CPUS RAY_START_ARGS START_SECONDS RAY_TMPDIR; do
    [[ -n "${!name:-}" ]] && command+=" $name=$(printf %q "${!name}")"
  done
  command+=" exec launchers/run-ray-job.sh worker $(printf %q "$MASTER_ADDR:$RAY_PORT")"
  if ((DRY_RUN)); then
    printf '%s <<<"%sRAY_AUTH_TOKEN" &\n' "$(quote "${ssh[@]}" "$host" "$command")" \$
    return
  fi
  exec {WORKER_INPUT}> >(exec "${ssh[@]}" "$host" "$command" >&2)
  WORKERS+=($!)
  printf '%s\n' "$RAY_AUTH_TOKEN" >&"$WORKER_INPUT"
}

nodes_joined() {
  python3 - "$MASTER_ADDR:$RAY_PORT" "$NUM_NODES" <<'PYTHON'
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = sum(node["Alive"] for node in ray.nodes())
print(f"run-ray-job: {alive} of {sys.argv[2]} nodes", file=sys.stderr)
sys.exit(alive < int(sys.argv[2]))
PYTHON
}

# own_address NAME: the address Ray's head takes. A host name may stand for loopback on its own host, where no other
# node would find it; then, and without a name, this host's first address is taken.
own_address() {
  local address=$1
  case $address in
    "" | *[!0-9.]*) address=$(getent ahostsv4 "${1:-localhost}" | awk '$1 !~ /^127\./ { print $1; exit }') ;;
  esac
  printf '%s\n' "${address:-$(hostname -I | cut -d' ' -f1)}"
}

run_head() {
  local hosts host head_args entrypoint
  take_common_args "$@"
  MASTER_ADDR=$(own_address "${MASTER_ADDR:-}")
  RAY_PORT=${RAY_PORT:-6379} RAY_DASHBOARD_PORT=${RAY_DASHBOARD_PORT:-8265}
  read -ra hosts <<<"${WORKER_HOSTS:-}"
  NUM_NODES=${NUM_NODES:-$((1 + ${#hosts[@]}))}
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
  if [[ -n "${ENTRYPOINT:-}" ]]; then
    entrypoint=(bash -c "$ENTRYPOINT")
  else
    ((NUM_GPUS > 0)) || fail "no GPU found on this node: set NUM_GPUS to what each node has"
    RUN_DIR=$(realpath -m "${RUN_DIR:-runs/ray-job}")
    job_args
    train_args
    entrypoint=(miles-lite train "${TRAIN_ARGS[@]}")
  fi
  need_command ray "install the cluster's requirements, or run scripts/setup-cpu.sh"
  end_with_me
  use_ray_token
  show_env RAY_AUTH_MODE RAY_AUTH_TOKEN PYTHONPATH CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE WANDB_API_KEY

  read -ra head_args <<<"${RAY_HEAD_ARGS:-}"
  start ray start --head --block --node-ip-address="$MASTER_ADDR" --port="$RAY_PORT" --dashboard-host=127.0.0.1 \
    --dashboard-port="$RAY_DASHBOARD_PORT" "${RAY_NODE_ARGS[@]}" "${head_args[@]}"
  export RAY_ADDRESS="http://127.0.0.1:$RAY_DASHBOARD_PORT"
  ((DRY_RUN)) || until_true "the Ray head" listens "$MASTER_ADDR:$RAY_PORT"
  WORKERS=()
  for host in "${hosts[@]}"; do start_worker "$host"; done
  if ! ((DRY_RUN)); then
    until_true "the Ray dashboard" listens "127.0.0.1:$RAY_DASHBOARD_PORT"
    until_true "$NUM_NODES nodes" nodes_joined
  fi
  SUBMISSION=miles-lite-$(date +%Y%m%d-%H%M%S)-$$
  attend ray job submit --address="$RAY_ADDRESS" --submission-id="$SUBMISSION" --runtime-env-json="$(runtime_env_json)" \
    -- "${entrypoint[@]}"
}

# Ends in this order: the job (it gets SIGTERM, so that it can save), the workers, the head.
on_exit() {
  if [[ -n "${SUBMISSION:-}" ]] && ! ((DRY_RUN)); then
    timeout 20 ray job stop --address="$RAY_ADDRESS" "$SUBMISSION" >/dev/null 2>&1 || true
  fi
  [[ -z "${WORKER_INPUT:-}" ]] || end "${WORKERS[@]}"
  end_started
}

cd "$REPO"
case ${1:-} in
  worker) shift; [[ "${1:-}" == *:* ]] || fail "usage: run-ray-job.sh worker HEAD_HOST:PORT"; run_worker "$@" ;;
  head) shift; run_head "$@" ;;
  *) run_head "$@" ;;
esac
