"""The one attention function of the trainer, under the name `segments` of transformers' AttentionInterface.

It computes what a `Layout` says: on a CPU with SDPA per segment, on CUDA with one call of FlashAttention's varlen
kernel. transformers builds no mask for a name that has no mask function, and hands the keyword `segments` of a forward
pass on to every layer, recomputed ones included.

Invariant: what the function does not compute (attention sinks, soft caps, dropout, bidirectional attention) it refuses
by name; models that need it are told by `unpackable` before they get here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from miles_lite.train.layout import Layout
from miles_lite.weights.compat import causal_class, import_transformers, takes_attention_functions, takes_sdpa

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "segments"

PACKED_LAYERS = {"full_attention", "sliding_attention"}
ROW_ROPES = {"dynamic", "longrope"}
"""Rotary embeddings whose frequencies depend on the largest position of a row."""


@dataclass
class Segments:
    """A layout where it computes: one row, forward and backward.

    gather   makes the keys, and the values, of the layout's pieces from those of this rank's tokens, float [B, H, n, D]
             each, with gradient; None where they are the row's own
    reached  whether a layer has been given it: a model that hands it to none computes something else
    """

    layout: Layout
    device: torch.device
    gather: Callable[[Tensor], Tensor] | None = None
    reached: bool = False
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def mask(self, queries: int, keys: int, window: int) -> Tensor:
        """bool [queries, keys]: lower-right causal, of the last `window` keys unless that is 0."""
        key = (queries, keys, window)
        if key not in self._masks:
            self._masks[key] = lower_right(*key, device=self.device)
        return self._masks[key]

    @cached_property
    def varlen(self) -> tuple[Tensor | None, Tensor, Tensor, int, int]:
        """As a varlen kernel takes it: where the keys of all segments stand, int64, None where they stand as they are;
        the segments' and their keys' bounds, int32; the most of each."""
        layout = self.layout
        whole = torch.arange(sum(layout.pieces))
        pieces = torch.split(whole, list(layout.pieces))
        index = torch.cat([pieces[piece] for seen in layout.keys for piece in seen])
        reach = layout.reach
        bounds = (torch.tensor([0, *accumulate(each)], dtype=torch.int32) for each in (layout.queries, reach))
        queries, keys = (each.to(self.device) for each in bounds)
        where = None if torch.equal(index, whole) else index.to(self.device)
        return where, queries, keys, max(layout.queries), max(reach)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **more: object,
) -> tuple[Tensor, None]:
    """query [B, H, n, D], key and value [B, H', m, D]; the result is [B, n, H, D].

    Without `segments` each sequence sees itself. `more` is what this function has no use for. Raises
    NotImplementedError.
    """
    refuse(module, attention_mask, dropout, more)
    window = sliding_window or 0
    if segments is None:
        causal = query.shape[2] == key.shape[2] and not window
        mask = None if causal else lower_right(query.shape[2], key.shape[2], window, device=query.device)
        return attend(query, key, value, mask, scaling).transpose(1, 2).contiguous(), None
    segments.reached = True
    if segments.gather is not None:
        key, value = segments.gather(key), segments.gather(value)
    if query.is_cuda and flashable(query, value):
        return on_cuda(query, key, value, segments, window, scaling), None
    return on_cpu(query, key, value, segments, window, scaling), None


def on_cpu(query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int, scale: float | None) -> Tensor:
    """Segment by segment; keys and values are split once, as slicing each would make a whole gradient of each."""
    layout = segments.layout
    keys, values = torch.split(key, list(layout.pieces), 2), torch.split(value, list(layout.pieces), 2)

    def results() -> Iterator[Tensor]:
        for own, pieces in zip(torch.split(query, list(layout.queries), 2), layout.keys, strict=True):
            k, v = (torch.cat([each[piece] for piece in pieces], 2) for each in (keys, values))
            n, m = own.shape[2], k.shape[2]
            causal = n == m and (not window or m <= window)
            yield attend(own, k, v, None if causal else segments.mask(n, m, window), scale)

    return torch.cat(list(results()), 2).transpose(1, 2).contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """SDPA behind a mask, else causal; heads of keys serve several heads of queries."""
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def flashable(query: Tensor, value: Tensor) -> bool:
    """Whether FlashAttention computes this; else SDPA does, segment by segment."""
    size = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and size == value.shape[-1] and size <= 256 and size % 8 == 0


def on_cuda(query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int, scale: float | None) -> Tensor:
    """One kernel for all segments; the keys of segments that share some are copied."""
    from torch.nn.attention.varlen import varlen_attn

    where, query_bounds, key_bounds, most_queries, most_keys = segments.varlen
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    if where is not None:
        k, v = k.index_select(0, where), v.index_select(0, where)
    attended = varlen_attn(
        q,
        k,
        v,
        query_bounds,
        key_bounds,
        most_queries,
        most_keys,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=True,
    )
    assert isinstance(attended, Tensor)
    return attended[None]


def lower_right(queries: int, keys: int, window: int, *, device: torch.device) -> Tensor:
    """bool [queries, keys]: the last query sees the last key, each one key less than the next; `window` of them at
    most, unless it is 0."""
    query = torch.arange(queries, device=device)[:, None] + (keys - queries)
    key = torch.arange(keys, device=device)
    seen = key <= query
    return seen & (query - key < window) if window else seen


def refuse(module: nn.Module, mask: Tensor | None, dropout: float, more: dict[str, object]) -> None:
    """Raises NotImplementedError for what `segment_attention` does not compute."""
    refused = {
        "an attention mask": mask is not None,
        "attention dropout": dropout != 0.0,
        "attention sinks (s_aux)": more.get("s_aux") is not None,
        "a soft cap of attention scores (softcap)": more.get("softcap") is not None,
        "bidirectional attention": not (more.get("is_causal") or getattr(module, "is_causal", True)),
    }
    for what, asked in refused.items():
        if asked:
            raise NotImplementedError(f"{type(module).__name__} asks for {what}, which packed rows do not have")


def unpackable(config: PretrainedConfig) -> str | None:
    """Why sequences of such a model cannot share a row, in a clause; None where they can."""
    text = config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - PACKED_LAYERS
    if others:
        return f"it has layers of {', '.join(sorted(others))}"
    if text.model_type == "gpt_oss":
        return "its attention has sinks"
    if getattr(text, "attn_logit_softcapping", None):
        return "it caps attention scores (attn_logit_softcapping)"
    ropes = _rope_types(getattr(text, "rope_parameters", None)) & ROW_ROPES
    if ropes:
        return f"its rotary embedding ({', '.join(ropes)}) looks at the longest sequence of a row"
    kind = causal_class(config)
    if kind is None or not takes_attention_functions(kind):
        return f"{text.model_type} does not take an attention function"
    return None


def _rope_types(parameters: object) -> set[str]:
    """Of all layers; parameters may be given per type of layer."""
    if not isinstance(parameters, dict):
        return set()
    own = {parameters[name] for name in ("rope_type", "type") if isinstance(parameters.get(name), str)}
    return own.union(*(_rope_types(each) for each in parameters.values()))


def implementation(config: PretrainedConfig) -> str:
    """The `attn_implementation` that a model is loaded with: this one, or transformers' own where it must be."""
    if unpackable(config) is None:
        import_transformers().AttentionInterface.register(NAME, segment_attention)
        return NAME
    kind = causal_class(config)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if kind is not None and takes_sdpa(kind) and not capped else "eager"
