#!/usr/bin/env bash
# Learning without reinforcement: the warm-started model tries the training tasks, and imitates its own successes.
#
#   examples/swe-agent/imitate.sh RUN_DIR        a folder in which launchers/quickstart.sh has made data/, or will
#
# Writes RUN_DIR/imitate: traces, the dataset, the model, and before.json and after.json, its held-out success.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)
[[ -x "$REPO/.venv/bin/python" ]] && PATH="$REPO/.venv/bin:$PATH"
export PATH PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }
[[ "${1:-}" != -h && "${1:-}" != --help ]] || { usage; exit 0; }
(($# == 1)) || { usage >&2; exit 2; }
DATA=$1/data OUT=$1/imitate
[[ -d "$DATA/model" ]] || python3 "$HERE/prepare.py" --out "$DATA"
rm -rf "$OUT"
mkdir -p "$OUT"

python3 -m miles_lite rollout --hf-checkpoint "$DATA/model" --prompt-data "$DATA/train.jsonl" \
  --custom-agent-function-path "$HERE/agent.py:run" --tito-allowed-append-roles tool user \
  --num-rollout 6 --rollout-batch-size 16 --n-samples-per-prompt 16 --rollout-num-gpus 1 --rollout-temperature 1.0 \
  --rollout-max-response-len 64 --rollout-max-context-len 512 --rollout-timeout 120 --sglang-server-concurrency 64 \
  --trajectory-dir "$OUT/traces" --run-dir "$OUT/rollout"
python3 -m miles_lite traces to-data "$OUT/traces" --out "$OUT/data" --format sft --success
python3 -m miles_lite train --loss-type sft_loss --hf-checkpoint "$DATA/model" --prompt-data "$OUT/data/sft.jsonl" \
  --rollout-batch-size 32 --num-rollout 120 --rollout-shuffle --lr 1e-3 --lr-decay-style linear --clip-grad 1.0 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 --actor-num-gpus-per-node 2 --run-dir "$OUT/sft"
python3 "$HERE/debugger.py" --model "$DATA/model" --data "$DATA/heldout.jsonl" --json "$OUT/before.json"
python3 "$HERE/debugger.py" --model "$OUT/sft/model" --data "$DATA/heldout.jsonl" --json "$OUT/after.json"
