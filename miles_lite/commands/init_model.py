"""`miles-lite init-model`: a small model and tokenizer on the spot, optionally warm-started on transcripts.

Invariant: nothing is downloaded, and the same flags give the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.flags import parser_of, take
from miles_lite.config.folders import check_folder
from miles_lite.config.model import Seed
from miles_lite.config.option import again, option
from miles_lite.errors import UserError, user_error


@dataclass(frozen=True, kw_only=True)
class InitModel:
    """model: a Qwen3 or Qwen3-MoE and a byte-level BPE tokenizer with a ChatML template."""

    out: str = option(help="folder to write")
    corpus: tuple[str, ...] = option(help="text files, or JSONL of {'messages': [...]}, the tokenizer learns from")
    hidden_size: int = option(128, help="width", least=1)
    num_layers: int = option(4, help="layers", least=1)
    num_attention_heads: int = option(4, help="attention heads", least=1)
    num_query_groups: int = option(2, help="key/value heads", least=1)
    ffn_hidden_size: int = option(256, help="width of the feed-forward layer", least=1)
    num_experts: int = option(0, help="experts per layer, which make it a Qwen3-MoE; 0: none", least=0)
    moe_router_topk: int = option(2, help="experts that a token is sent to", least=1)
    moe_ffn_hidden_size: int = option(128, help="width of an expert", least=1)
    vocab_size: int = option(768, help="upper bound of the vocabulary", least=1)
    max_position_embeddings: int = option(2048, help="context length in tokens", least=1)
    seed: int = again(Seed, "seed", aka=(), help="seed of the weights and of the warm start")
    warm_start: str | None = option(None, help="JSONL of {'messages': [...]}: train on its assistant turns")
    warm_start_steps: int = option(300, help="steps of that", least=1)
    warm_start_batch: int = option(32, help="transcripts per step", least=1)
    warm_start_lr: float = option(3e-3, help="its learning rate", above=0)
    threads: int = option(2, help="CPU threads", least=1)


def main(argv: Sequence[str]) -> int:
    """Parse flags, make the model, say what was made. Raises UserError."""
    options = take(parser_of(InitModel, prog="miles-lite init-model").parse_args(list(argv)), InitModel)
    check_folder("--out", options.out)
    if options.warm_start is not None and not Path(options.warm_start).is_file():
        raise UserError(f"--warm-start {options.warm_start}: no such file")
    texts = [text for path in options.corpus for text in read_corpus(Path(path))]
    from miles_lite.init_model.build import init_model
    from miles_lite.init_model.warm_start import warm_start

    parameters = init_model(
        options.out,
        hidden=options.hidden_size,
        layers=options.num_layers,
        heads=options.num_attention_heads,
        kv_heads=options.num_query_groups,
        intermediate=options.ffn_hidden_size,
        vocab_size=options.vocab_size,
        context=options.max_position_embeddings,
        seed=options.seed,
        experts=options.num_experts,
        experts_per_token=options.moe_router_topk,
        expert_intermediate=options.moe_ffn_hidden_size,
        corpus=texts,
    )
    print(f"{options.out}: {parameters} parameters, seed {options.seed}")
    if options.warm_start is not None:
        result = warm_start(
            options.out,
            options.warm_start,
            steps=options.warm_start_steps,
            batch=options.warm_start_batch,
            lr=options.warm_start_lr,
            seed=options.seed,
            threads=options.threads,
        )
        print(f"{options.out}: warm start on {options.warm_start}: {result}")
    return 0


def read_corpus(path: Path) -> Iterator[str]:
    """The texts of a file: of a JSONL file every message's content, else the lines. Raises UserError."""
    from miles_lite.init_model.transcripts import read_conversations

    if path.suffix != ".jsonl":
        with user_error(f"--corpus: cannot read {path}", OSError):
            lines = path.read_text(encoding="utf-8").splitlines()
        yield from lines
        return
    for _, messages in read_conversations(path, given_as="--corpus"):
        for message in messages:
            yield message["role"]
            yield message["content"]
