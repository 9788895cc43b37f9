"""Flags that are none of ours: SGLang's own, and those of the field's launchers that a launcher may keep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError

SHAPE_FLAGS = frozenset(
    """num-layers hidden-size ffn-hidden-size num-attention-heads group-query-attention num-query-groups kv-channels
    qk-layernorm swiglu normalization norm-epsilon rotary-base rotary-percent vocab-size disable-bias-linear
    add-qkv-bias untie-embeddings-and-output-weights use-rotary-position-embeddings position-embedding-type
    make-vocab-size-divisible-by max-position-embeddings seq-length num-experts moe-ffn-hidden-size
    moe-router-topk moe-shared-expert-intermediate-size moe-layer-freq moe-grouped-gemm moe-token-dispatcher-type
    moe-router-load-balancing-type moe-aux-loss-coeff moe-router-score-function moe-router-dtype moe-permute-fusion
    moe-router-enable-expert-bias moe-router-bias-update-rate moe-router-pre-softmax
    moe-enable-deepep moe-flex-dispatcher-backend""".split()
)
"""Model-shape flags of Megatron launchers: the shape comes from the checkpoint's config.json, so they are ignored."""

IGNORED_FLAGS = frozenset(
    """attention-dropout hidden-dropout attention-softmax-in-fp32 accumulate-allreduce-grads-in-fp32
    attention-backend optimizer use-distributed-optimizer
    async-save allgather-cp grad-reduce-in-bf16 no-check-for-nan-in-loss-and-grad use-flash-attn no-offload-train
    optimizer-offload-fraction overlap-grad-reduce overlap-param-gather
    overlap-cpu-optimizer-d2h-h2d use-precision-aware-optimizer decoder-last-pipeline-num-layers
    decoder-first-pipeline-num-layers megatron-to-hf-mode use-miles-router balance-data
    apply-chat-template transformer-impl bf16 no-gradient-accumulation-fusion
    router-assignment-mode router-prefill-policy router-decode-policy router-disable-health-check
    router-health-check-interval-secs router-health-failure-threshold router-health-success-threshold
    miles-router-max-connections miles-router-health-check-failure-threshold""".split()
)
"""Flags of the field's launchers that change nothing here; accepted so that a launcher can be carried over."""

SglangValue = str | bool | list[str]


@dataclass(frozen=True)
class Leftovers:
    """What a command line held besides our own flags: SGLang's options by underscored name, and ignored flags."""

    sglang: Mapping[str, SglangValue] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def show_ignored(self) -> None:
        """Say on stderr which flags were accepted and change nothing."""
        if self.ignored:
            names = ", ".join(f"--{name}" for name in self.ignored)
            print(f"ignored (the checkpoint, this trainer or this router decides): {names}", file=sys.stderr)


def sort_leftovers(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> Leftovers:
    """Divide what argparse did not know into SGLang's own flags and ignorable Megatron flags; refuse the rest."""
    sglang: dict[str, SglangValue] = {}
    ignored: list[str] = []
    for flag, values in _with_values(unknown):
        name = flag.removeprefix("--")
        if name.startswith("sglang-router-"):
            raise UserError(f"{flag}: the router has no such option{nearest(flag, _known(parser))}")
        if name.startswith("sglang-"):
            key = name.removeprefix("sglang-").replace("-", "_")
            sglang[key] = True if not values else values[0] if len(values) == 1 else values
        elif name in SHAPE_FLAGS or name in IGNORED_FLAGS:
            ignored.append(name)
        else:
            hint = nearest(flag, _known(parser))
            raise UserError(f"{parser.prog}: unknown flag {flag}{hint}\n  see: {parser.prog} --help")
    return Leftovers(sglang=sglang, ignored=tuple(ignored))


def _with_values(tokens: Sequence[str]) -> list[tuple[str, list[str]]]:
    pairs: list[tuple[str, list[str]]] = []
    for token in tokens:
        if token.startswith("--"):
            flag, _, value = token.partition("=")
            pairs.append((flag, [value] if value else []))
        elif pairs:
            pairs[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument '{token}': flags start with --")
    return pairs


def _known(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]
