"""Flags of the field's launchers that are not declared here: what each becomes, and why.

Invariant: ANSWERS is the one table; a launcher's flag that is an option (or another name of one, see `Option.aka`), an
engine's (`--sglang-`), or in it, and nothing else, is known. One more is one word in a line, or one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from miles_lite.config.choices import Word

Values: TypeAlias = Sequence[str]


class Fate(Word):
    """What becomes of a flag: other flags, nothing, or an error."""

    MAPPED = "mapped"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """Of a flag, where its first value is one of `values` (none: whatever it is): its fate, and the line that says so.

    ours  the command line in its place
    translated  only `miles-lite migrate` says so: a run refuses what it cannot do as it was meant
    """

    fate: Fate
    why: str
    ours: Callable[[Values], list[str]] | None = None
    values: tuple[str, ...] = ()
    translated: bool = False


def ignored(why: str, *names: str) -> Iterator[tuple[str, Answer]]:
    for line in names:
        for name in line.split():
            yield name, Answer(Fate.IGNORED, why)


def refused(why: str, *names: str, values: tuple[str, ...] = ()) -> Iterator[tuple[str, Answer]]:
    for line in names:
        for name in line.split():
            yield name, Answer(Fate.REFUSED, why, values=values)


def mapped(name: str, why: str, ours: Callable[[Values], list[str]], *values: str) -> Iterator[tuple[str, Answer]]:
    yield name, Answer(Fate.MAPPED, why, ours, values)


def translated(name: str, why: str, *values: str) -> Iterator[tuple[str, Answer]]:
    yield name, Answer(Fate.MAPPED, why, _nothing, values, translated=True)


def _dumps(values: Values) -> list[str]:
    folder = values[0] if values else "dump"
    rollouts = f"{folder}/rollout_data/{{rollout_id}}.pt"
    return ["--save-debug-rollout-data", rollouts, "--trajectory-dir", f"{folder}/trajectory"]


def _nothing(values: Values) -> list[str]:
    return []


_ROWS: tuple[Iterator[tuple[str, Answer]], ...] = (
    ignored(
        "the checkpoint's config.json has the model's shape",
        "num-layers hidden-size ffn-hidden-size num-attention-heads group-query-attention num-query-groups kv-channels",
        "qk-layernorm swiglu normalization norm-epsilon rotary-base rotary-percent vocab-size disable-bias-linear",
        "add-qkv-bias untie-embeddings-and-output-weights use-rotary-position-embeddings position-embedding-type",
        "make-vocab-size-divisible-by max-position-embeddings seq-length num-experts moe-ffn-hidden-size",
        "moe-router-topk moe-shared-expert-intermediate-size moe-layer-freq moe-grouped-gemm moe-token-dispatcher-type",
        "moe-router-load-balancing-type moe-aux-loss-coeff moe-router-score-function moe-router-dtype",
        "moe-permute-fusion moe-router-enable-expert-bias moe-router-bias-update-rate moe-router-pre-softmax",
        "moe-enable-deepep moe-flex-dispatcher-backend moe-router-num-groups moe-router-group-topk",
        "moe-router-topk-scaling-factor moe-shared-expert-overlap mtp-num-layers multi-latent-attention q-lora-rank",
        "kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim rope-type rotary-scaling-factor mscale mscale-all-dim",
        "attention-output-gate apply-layernorm-1p layernorm-epsilon model-name spec",
    ),
    ignored("the trainer runs without dropout", "attention-dropout hidden-dropout no-bias-dropout-fusion"),
    ignored(
        "the trainer sums in float32, and computes in bfloat16",
        "attention-softmax-in-fp32 accumulate-allreduce-grads-in-fp32 bf16 grad-reduce-in-bf16",
        "no-gradient-accumulation-fusion",
    ),
    ignored(
        "the trainer computes in bfloat16, of which fp8 is a faster approximation; engines may serve fp8",
        "fp8-format fp8-recipe fp8-param-gather te-precision-config-file extra-high-precision-layers-hf",
        "extra-high-precision-layers-megatron num-layers-at-start-in-bf16 num-layers-at-end-in-bf16",
        "first-last-layers-bf16 reuse-grad-buf-for-mxfp8-param-ag",
    ),
    ignored(
        "--attn-implementation says how attention is computed", "attention-backend use-flash-attn transformer-impl"
    ),
    ignored(
        "sequences are packed without padding",
        "qkv-format data-pad-size-multiplier variable-seq-lengths",
    ),
    ignored("activations between layers are whole on tensor ranks", "sequence-parallel"),
    ignored("experts that no ranks share as whole ones are cut over the tensor ranks", "expert-tensor-parallel-size"),
    ignored(
        "FSDP2 shards and overlaps by itself",
        "use-distributed-optimizer overlap-grad-reduce overlap-param-gather allgather-cp",
        "decoder-last-pipeline-num-layers decoder-first-pipeline-num-layers megatron-to-hf-mode",
        "freeze-e-score-correction-bias",
    ),
    ignored(
        "--optimizer-cpu-offload moves all of the optimizer, and its copies",
        "optimizer-offload-fraction overlap-cpu-optimizer-d2h-h2d use-precision-aware-optimizer",
        "rematerialize-param-from-master-weight disable-weights-backuper lora-base-cpu-backup",
        "stream-optimizer-state-to-disk offload-train-disk-dir offload-train-target offload-train-disk-chunk-mb",
        "train-memory-margin-bytes no-offload-train offload-train",
    ),
    ignored(
        "draft heads keep their weights: what engines speculate stays exact, whatever they are",
        "enable-mtp-training mtp-loss-scaling-factor",
    ),
    ignored("AdamW is the optimizer", "optimizer muon-momentum"),
    ignored("checkpoints are written beside the training", "async-save ckpt-format no-save-optim-async"),
    ignored("losses and gradients that are not finite end the run", "no-check-for-nan-in-loss-and-grad"),
    ignored("logits exist for a chunk of tokens at a time", "log-probs-chunk-size log-probs-max-tokens-per-gpu"),
    ignored("micro-batches are balanced by what there is to compute", "balance-data balance-by-flops"),
    ignored("every prompt is rendered by the chat template", "apply-chat-template"),
    ignored("tokens are the record: nothing is decoded and encoded again", "rollout-skip-special-tokens"),
    ignored(
        "the router places, probes and readmits by itself (--router-policy)",
        "use-miles-router router-assignment-mode router-prefill-policy router-decode-policy router-dp-aware",
        "router-disable-health-check",
        "router-health-check-interval-secs router-health-failure-threshold router-health-success-threshold",
        "miles-router-max-connections miles-router-health-check-failure-threshold use-distributed-post http-proxy",
    ),
    ignored("sessions keep every token, in the place of a cache of texts", "miles-router-middleware-paths"),
    ignored("dead engines, workers and sessions are always replaced", "use-fault-tolerance ft-components"),
    ignored("an engine is probed from when it has started", "rollout-health-check-first-wait"),
    ignored(
        "Ray's endpoint has the gauges of every run, under its own port and the run's name",
        "use-prometheus prometheus-port prometheus-run-name",
    ),
    ignored("a group's name in wandb is as it is given", "disable-wandb-random-suffix"),
    ignored("a step's number is its rollout's", "wandb-always-use-train-step"),
    ignored("the agent's turns are always logged (agent/turns_mean)", "log-multi-turn"),
    ignored("the difference of trainer and engine is always logged", "get-mismatch-metrics"),
    ignored(
        "the run folder holds what a dashboard shows: metrics, trajectories, failures",
        "use-miles-dashboard dashboard-gpu-sample-interval dashboard-sglang-scrape-mode",
    ),
    ignored(
        "a check of the incumbent's own tests",
        "ci-test ci-disable-kl-checker ci-metric-checker-key ci-metric-checker-threshold",
    ),
    ignored("an option of the launcher, not of the trainer", "head-ip ckpt-dir download-only mode node-rank"),
    ignored("a step's batch may be of any size", "use-dynamic-global-batch-size allow-partial-train-step"),
    ignored("--loss-type sft_loss computes no advantages", "disable-compute-advantages-and-returns"),
    ignored("the rollouts of one prompt are one group's mean: zeros take part", "filter-zero-reward-samples"),
    ignored("the manager is on the driver's node", "pin-rollout-manager-to-head"),
    ignored(
        "the value head is the model's own (--advantage-estimator ppo)", "critic-num-nodes critic-num-gpus-per-node"
    ),
    ignored("--offload-rollout frees weights and caches", "offload-rollout-level"),
    mapped(
        "offload",
        "the engines' half of it; the trainer's is --optimizer-cpu-offload",
        lambda values: ["--offload-rollout"],
    ),
    mapped("rollout-external", "--rollout-external-engine-addrs says so", _nothing),
    ignored(
        "what could become too old is not started, so that nothing waits in a buffer and is dropped",
        "async-data-buffer-capacity-factor custom-async-data-buffer-path mask-offpolicy-in-partial-rollout",
    ),
    ignored("engines get new weights after each training step", "update-weights-interval"),
    mapped("train-env-vars", "export them before the launcher: ranks inherit its environment", _nothing),
    mapped("no-offload-rollout", "engines keep their memory unless --offload-rollout is given", _nothing),
    mapped("dump-details", "rollouts as --save-debug-rollout-data, conversations as --trajectory-dir", _dumps),
    mapped(
        "rollout-function-path",
        "--loss-type sft_loss trains rows without rollouts",
        lambda values: ["--loss-type", "sft_loss", "--n-samples-per-prompt", "1"],
        "miles.rollout.sft_rollout.generate_rollout",
        "slime.rollout.sft_rollout.generate_rollout",
    ),
    mapped(
        "rollout-function-path",
        "the loop of this program is that function",
        _nothing,
        "miles.rollout.sglang_rollout.generate_rollout",
        "miles.rollout.inference_rollout.inference_rollout_common.InferenceRolloutFn",
    ),
    mapped(
        "custom-generate-function-path",
        "agents always speak to a session: --custom-agent-function-path is enough",
        _nothing,
        "miles.rollout.generate_hub.agentic_tool_call.generate",
    ),
    translated("train-backend", "Hugging Face models are trained by FSDP2", "megatron"),
    mapped("rm-type", "answers are compared as mathematics", lambda values: ["--rm-type", "math"], "gemma_math"),
    mapped("chat-template-path", "--tito-model auto proves the model's own template", _nothing, "autofix"),
    mapped(
        "true-on-policy-mode",
        "--use-rollout-logprobs takes the engine's logprobs, so that nothing is off policy at the first step",
        lambda values: ["--use-rollout-logprobs", "--deterministic-mode"],
    ),
    ignored("held-out prompts run on the engines of the run", "eval-num-gpus eval-num-gpus-per-engine"),
    ignored("--save-hf keeps the model folders of checkpoints", "eval-hf-dir eval-keep-snapshots"),
    ignored("a rollout function draws from --prompt-data, or does not", "disable-rollout-global-dataset"),
    refused("prompts are dealt from --prompt-data, in its order", "data-source-path buffer-filter-path"),
    mapped(
        "rollout-function-path",
        "the schedule runs ahead of the trainer (--max-weight-staleness)",
        lambda values: ["--fully-async"],
        "fully_async_rollout.generate_rollout_fully_async",
        "miles.rollout.fully_async_rollout.FullyAsyncRolloutFn",
    ),
    refused("prompts are text: images are neither rolled out nor trained", "multimodal-keys"),
    refused(
        "one adapter is trained at a time: --lora-rank",
        "multi-lora-adapter multi-lora-api-port",
        "multi-lora-disable-service-mode multi-lora-n-adapters multi-lora-idle-poll-s experts-shared-outer-loras",
    ),
    refused("adapters begin anew: --load goes on from a checkpoint of them", "lora-adapter-path"),
    refused("routers are trained; --use-rollout-routing-replay keeps their choices", "moe-router-freeze-gate"),
    refused(
        "Hugging Face models are trained: put the model's class beside its checkpoint",
        "custom-model-provider-path custom-megatron-init-path custom-megatron-before-log-prob-hook-path",
        "custom-megatron-before-train-step-hook-path",
    ),
)

ANSWERS: Mapping[str, tuple[Answer, ...]] = {
    name: tuple(answer for row_name, answer in rows if row_name == name)
    for rows in [[row for group in _ROWS for row in group]]
    for name in dict.fromkeys(row_name for row_name, _ in rows)
}
"""By the flag's name, without dashes; of several answers the first whose values are the flag's counts."""


def answer_to(name: str, values: Values) -> Answer | None:
    """What is said of a flag; None for one that is not in the table, or not with that value."""
    for answer in ANSWERS.get(name, ()):
        if not answer.values or (values and values[0] in answer.values):
            return answer
    return None
