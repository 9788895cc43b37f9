"""LoRA adapters. The names are the field's."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.option import option

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """LoRA: small matrices are trained beside the model's own, which stay."""

    lora_rank: int = option(0, help="their rank; 0: the model itself is trained", least=0)
    lora_alpha: float | None = option(
        None, help="what they weigh, divided by the rank (default: the rank)", above=0, needs="lora_rank"
    )
    target_modules: tuple[str, ...] = option(
        (ALL_LINEAR,),
        help="names of the linear layers that get them, such as q_proj v_proj; all-linear: all but head and experts",
        needs="lora_rank",
    )
    lora_dropout: float = option(
        0.0, help="share of their inputs that is dropped in training", least=0, below=1, needs="lora_rank"
    )

    @property
    def alpha(self) -> float:
        return self.lora_rank if self.lora_alpha is None else self.lora_alpha

    @property
    def every_layer(self) -> bool:
        """Whether all linear layers get them."""
        return self.target_modules == (ALL_LINEAR,)
