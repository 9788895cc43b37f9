#!/usr/bin/env bash
#SBATCH --job-name=miles-lite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=runs/slurm-%j.log
# Trains on the nodes of a Slurm allocation: run-ray-job.sh as head on the first, as worker on the others.
#
#   HF_CHECKPOINT=... PROMPT_DATA=... AGENT_FUNCTION=... sbatch launchers/run-slurm.sh [miles-lite flags...]
#   launchers/run-slurm.sh --dry-run                                what it would do on two nodes
#
# Two nodes of eight GPUs, unless sbatch is told otherwise: sbatch --nodes=4 launchers/run-slurm.sh ...
# Everything run-ray-job.sh reads from the environment holds here too, but MASTER_ADDR, NUM_NODES and WORKER_HOSTS, which
# come from Slurm. Submit from the repository's folder.
# Ray's token reaches the nodes in the environment of the job steps.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[[ -f launchers/common.sh ]] || { echo "run-slurm: submit from the repository's folder" >&2; exit 1; }
# Slurm runs a copy of this file, so the repository is where it was submitted from.
# shellcheck source=launchers/common.sh
source launchers/common.sh
take_common_args "$@"

if ((DRY_RUN)); then
  NODES=(head-node worker-node)
else
  [[ -n "${SLURM_JOB_NODELIST:-}" ]] || fail "not in a Slurm job: use sbatch launchers/run-slurm.sh, or --dry-run"
  mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
fi
export MASTER_ADDR=${NODES[0]} RAY_PORT=${RAY_PORT:-6379} NUM_NODES=${#NODES[@]} RUN_DIR=${RUN_DIR:-runs/slurm-${SLURM_JOB_ID:-dry-run}}
export NUM_GPUS=${NUM_GPUS:-${SLURM_GPUS_ON_NODE:-8}}
unset WORKER_HOSTS
use_ray_token
show_env MASTER_ADDR NUM_NODES NUM_GPUS RUN_DIR RAY_AUTH_MODE RAY_AUTH_TOKEN PYTHONPATH
end_with_me

STEP=(srun --nodes=1 --ntasks=1 --overlap --export=ALL)
for node in "${NODES[@]:1}"; do
  start "${STEP[@]}" --nodelist="$node" launchers/run-ray-job.sh worker "$MASTER_ADDR:$RAY_PORT"
done
run "${STEP[@]}" --nodelist="$MASTER_ADDR" launchers/run-ray-job.sh head "${EXTRA_ARGS[@]}"
