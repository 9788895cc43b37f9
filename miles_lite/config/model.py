"""The model: its folder, its limits, its seed, and where training takes it."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.hub import model_path
from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Model:
    """model: what is served, and trained."""

    hf_checkpoint: str = option(
        help="Hugging Face model folder: config.json, weights, tokenizer; or its id on the hub",
        path=model_path,
        aka=("--sglang-model-path",),
    )


@dataclass(frozen=True, kw_only=True)
class Context:
    """context: how much the model reads at once."""

    rollout_max_context_len: int | None = option(
        None, help="the engine's context length in tokens", least=2, aka=("--sglang-context-length",)
    )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """seed: what chance depends on."""

    seed: int = option(
        1234, help="seed of torch, numpy and the engines", least=0, most=2**31 - 1, aka=("--sglang-random-seed",)
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """checkpoints: where the model comes from and where the run goes."""

    ref_load: str | None = option(
        None,
        help="reference model folder for the KL loss (default: --hf-checkpoint)",
        path=True,
        with_="use_kl_loss or kl_coef",
    )
    load: str | None = option(
        None, help="folder of --save to continue from; starts anew when it holds no checkpoint", path=True
    )
    save: str | None = option(None, help="folder for checkpoints, iteration-numbered", path=True)
    save_interval: int | None = option(None, help="save every N rollouts, and after the last", least=1, needs="save")
    save_retain_interval: int | None = option(
        None, help="keep the checkpoints of every N-th rollout and the newest (default: all)", least=1, needs="save"
    )
    save_optim: bool = option(True, help="save the optimizer's state with the weights", with_="save")
    load_optim: bool = option(True, help="take the optimizer's state from --load", with_="load")
    load_rng: bool = option(True, help="take the random numbers from --load", with_="load")
    finetune: bool = option(
        False, help="take nothing but weights from --load, and begin with the first rollout", with_="load"
    )
    save_hf: str | None = option(
        None,
        help="with each checkpoint also write a model folder; {rollout_id} is replaced by its number",
        path=True,
        needs="save",
    )
