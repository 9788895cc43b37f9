"""What is minimised: the loss that --loss-type names, an entropy bonus, and a KL loss to the reference model."""

from __future__ import annotations

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.train.losses import LOSSES
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import kl_estimate


def objective(streams: Streams, options: Algorithm) -> dict[str, Tensor]:
    """Its value per token as `loss`, and its metrics, each float32 [N]."""
    loss, metrics = LOSSES[options.loss_type](streams, options)
    metrics |= {"pg_loss": loss, "entropy_loss": streams.entropy, "ppo_kl": -streams.logratio}
    loss = loss - options.entropy_coef * streams.entropy
    if streams.reference is not None:
        metrics["kl_loss"] = kl_estimate(streams.new, streams.reference, kind=options.kl_loss_type)
        loss = loss + options.kl_loss_coef * metrics["kl_loss"]
    return metrics | {"loss": loss}


def metric_names(options: Algorithm, *, reference: bool) -> list[str]:
    """The names of what `objective` gives: what it says of no tokens."""
    return list(objective(Streams.empty(reference=reference), options))
