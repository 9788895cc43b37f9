"""What is minimised: components, each a loss per token with a share of its own in the loss of the step.

    policy        the loss that --loss-type names, corrected for what another policy sampled; an entropy bonus; a KL
                  loss to the reference model
    distillation  the divergence from a teacher, on the policy's tokens
    imitation     cross-entropy on tokens that nobody sampled (ECHO), a mean over those alone

Invariant: the components add up; which tokens one is of, and what each weighs, is the packer's. A name is of one
metric.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.hooks import LossFunction
from miles_lite.train.losses import load_loss
from miles_lite.train.losses.cross_entropy import cross_entropy
from miles_lite.train.losses.off_policy import corrections
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import kl_estimate

Terms = dict[str, Tensor]
"""Values per token by name, `loss` among them."""

OURS = ("loss", "pg_loss", "entropy_loss", "ppo_kl", "kl_loss", "echo_loss", "opd_reverse_kl", "opd_loss")
"""Names that no loss of a user's may give its metrics."""


def objective(streams: Streams, options: Algorithm) -> Terms:
    """The policy's: its value per token as `loss`, and its metrics, each float32 [N]."""
    loss, metrics = per_token(load_loss(options.loss.path), streams, options, where=f"--loss-type {options.loss.path}")
    where = f"--custom-tis-function-path {options.custom_tis_function_path}"
    for correction in corrections(options):
        weights, told = per_token(correction, streams, options, where=where, taken=metrics)
        loss = loss * weights
        metrics |= told
    metrics |= {"pg_loss": loss, "entropy_loss": streams.entropy}
    if not options.imitates:
        metrics["ppo_kl"] = -streams.logratio
    bonus = streams.entropy if options.entropy_clamp is None else streams.entropy.clamp_max(options.entropy_clamp)
    loss = loss - options.entropy_coef * bonus
    if options.use_kl_loss and streams.reference is not None:
        estimate = kl_estimate(streams.new, streams.reference, kind=options.kl_loss_type)
        metrics["kl_loss"] = estimate * streams.logratio.exp() if options.use_unbiased_kl else estimate
        loss = loss + options.kl_loss_coef * metrics["kl_loss"]
    return metrics | {"loss": loss}


def per_token(
    function: LossFunction, streams: Streams, options: Algorithm, *, where: str, taken: Collection[str] = ()
) -> tuple[Tensor, Terms]:
    """What a function gives. Raises UserError, which begins with `where`, for what is not a value of each token: it
    would be spread over all of them, and train; and for a metric whose name is `taken`."""
    said: object = function(streams, options)
    if not (isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], dict)):
        raise UserError(f"{where}: returned {type(said).__name__}: expected (loss, metrics), a tensor and a dictionary")
    first, metrics = said
    refuse_taken(metrics, (*OURS, *taken), where=where)
    for name, values in [
        ("what it returns first", first),
        *((f"its metric {name}", metrics[name]) for name in metrics),
    ]:
        if not isinstance(values, Tensor):
            raise UserError(f"{where}: {name} is a {type(values).__name__}: expected a tensor, a value for each token")
        if values.shape != streams.new.shape or values.dtype != streams.new.dtype:
            expected = f"{streams.new.dtype} {list(streams.new.shape)}, a value for each token"
            raise UserError(f"{where}: {name} is {values.dtype} {list(values.shape)}: expected {expected}")
    return first, metrics


def refuse_taken(names: Collection[str], taken: Collection[str], *, where: str) -> None:
    """Raises UserError, which begins with `where`, for a metric that would be added to one of ours."""
    if again := sorted(set(names).intersection(taken)):
        raise UserError(f"{where}: its metric {again[0]} has the name of another one: give it a name of its own")


def imitation(streams: Streams, options: Algorithm) -> Terms:
    """ECHO's (arXiv:2605.24517): -log p of what the agent was told, weighed by `echo_coef`."""
    loss, _ = cross_entropy(streams, options)
    return {"echo_loss": loss, "loss": options.echo_coef * loss}


def distillation(streams: Streams, options: Algorithm) -> Terms:
    """An estimate of KL(policy || teacher) from the tokens the policy sampled, weighed by `opd_loss_coef`
    (arXiv:2306.13649); `opd_reverse_kl` is k1's, whose mean is the divergence itself.

    With --opd-log-prob-top-k the part of the divergence that those tokens have (arXiv:2604.13016), Σ p (log p - log q):
    weighed by the policy's p of KL(policy || teacher), by the teacher's of KL(teacher || policy).
    """
    assert streams.teacher is not None, "a teacher was asked"
    if streams.top is None or streams.top_teacher is None:
        loss = kl_estimate(streams.new, streams.teacher, kind=options.opd_loss_type)
    elif options.opd_reward_weight_mode == "student_p":
        loss = (streams.top.exp() * (streams.top - streams.top_teacher)).sum(-1)
    else:
        loss = (streams.top_teacher.exp() * (streams.top_teacher - streams.top)).sum(-1)
    told = {"opd_reverse_kl": (streams.new - streams.teacher).detach(), "opd_loss": loss}
    return told | {"loss": options.opd_loss_coef * loss}


def metric_names(options: Algorithm, *, reference: bool) -> list[str]:
    """The names of what the components give: what they say of no tokens."""
    none = Streams.empty(reference=reference, teacher=options.distils)
    more = imitation(none, options) if options.echo_coef else {}
    return list(objective(none, options) | more | (distillation(none, options) if options.distils else {}))
