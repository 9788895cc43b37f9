"""What options cannot be together with the models that ranks load.

Invariant: a rule looks at folders alone, and raises what a rank would find out later; `check_models` asks all of RULES.
One more is a function and a word in that tuple.

    python -m miles_lite.train.model_rules CONFIG VERDICT

does so for a pickled config, and writes what is wrong, or nothing, into the file VERDICT.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miles_lite.config.choices import RoutingReplay
from miles_lite.config.options import Config
from miles_lite.config.teachers import is_url
from miles_lite.errors import UserError
from miles_lite.model_folder import check_model_folder
from miles_lite.process.drafted import drafted
from miles_lite.train.adapters import adapt
from miles_lite.train.checkpoint import check_saved
from miles_lite.train.expert_parallel import expert_plan
from miles_lite.train.iterations import iteration_folder, latest_iteration
from miles_lite.train.model_facts import ModelFacts
from miles_lite.train.routing_replay import Replay
from miles_lite.train.shapes import check_shapes
from miles_lite.train.tensor_parallel import tensor_plan


@dataclass(frozen=True)
class Models:
    """What a run's ranks load: the policy; reference model and teachers, where they are not the policy's folder."""

    config: Config
    policy: ModelFacts
    others: tuple[ModelFacts, ...]

    @classmethod
    def of(cls, config: Config) -> Models:
        """Raises UserError for a folder that is no model's."""
        policy = check_model_folder(config.model.hf_checkpoint)
        reference = config.checkpoint.ref_load if config.algorithm.compares else None
        given = [("--ref-load", reference)]
        given += [("--opd-teacher", where) for where in config.algorithm.teachers.values() if not is_url(where)]
        found = (ModelFacts(check_model_folder(where, given_as=flag), flag) for flag, where in given if where)
        others = tuple(each for each in found if each.folder != policy)
        return cls(config, ModelFacts(policy, "--hf-checkpoint"), others)

    @property
    def all(self) -> tuple[ModelFacts, ...]:
        return (self.policy, *self.others)


def shapes(models: Models) -> None:
    """Parallel sizes cut each of them."""
    for each in models.all:
        check_shapes(each.folder, models.config.parallelism)


def files(models: Models) -> None:
    """Ranks that share a model read their parts of it."""
    parallelism = models.config.parallelism
    cut = parallelism.shares_layers or parallelism.data_parallel_sharding_strategy == "optim_grads_params"
    for each in models.all:
        if (cut or models.config.topology.device == "cuda") and not each.sharded:
            raise UserError(f"{each}: has no *.safetensors, of which ranks that share a model read their parts")


def architectures(models: Models) -> None:
    """Each can be trained."""
    for each in models.all:
        each.empty(models.config.compute)


def vocabularies(models: Models) -> None:
    """Who says how likely the policy's ids are means the same by them."""
    policy = models.policy
    for other in models.others:
        if other.vocabulary < policy.vocabulary:
            raise UserError(
                f"{other}: knows {other.vocabulary} ids, and the policy's model {policy.vocabulary}, each of which it "
                "may be asked about: take a model of the same tokenizer"
            )
        theirs = other.token_ids
        names = {number: token for token, number in theirs.items()}
        for token, number in policy.token_ids.items() if theirs != policy.token_ids else ():
            if theirs.get(token, number) != number or names.get(number, token) != token:
                raise UserError(
                    f"{other}: its tokenizer is another one: id {number} is {names.get(number)!r} there and {token!r} "
                    "for the policy, and ids are compared as they are. Take a model of the same tokenizer"
                )


def likeliest_tokens(models: Models) -> None:
    """There are as many as are compared, and both score them."""
    options, policy = models.config.algorithm, models.policy
    top = options.opd_log_prob_top_k
    if top > policy.vocabulary:
        raise UserError(f"--opd-log-prob-top-k {top}: {policy} has {policy.vocabulary} tokens: give fewer")
    for other in models.others if top and options.opd_top_k_strategy == "only-teacher" else ():
        if other.vocabulary > policy.vocabulary:
            raise UserError(
                f"--opd-top-k-strategy only-teacher: {other} knows {other.vocabulary} ids, and the policy "
                f"{policy.vocabulary}: take only-student"
            )


def plans(models: Models) -> None:
    """There is one for what ranks share."""
    sizes, lora = models.config.parallelism, models.config.lora
    experts, tensor = sizes.expert_model_parallel_size, sizes.tensor_model_parallel_size
    for each in models.all if max(experts, tensor) > 1 else ():
        model = each.empty(models.config.compute)
        if experts > 1:
            expert_plan(model, ranks=experts)
        if each is models.policy and lora.lora_rank:
            adapt(model, lora, base=str(each.folder))
        if tensor > 1:
            tensor_plan(model, ranks=tensor, experts=experts == 1)


def checkpoint(models: Models) -> None:
    """What a run goes on from is there."""
    options = models.config.checkpoint
    folder = Path(options.load or "")
    iteration = latest_iteration(folder) if options.load else None
    if iteration is not None:
        check_saved(iteration_folder(folder, iteration), options, adapted=models.config.lora.lora_rank > 0)


def adapters(models: Models) -> None:
    """LoRA finds its layers."""
    if models.config.lora.lora_rank:
        adapt(models.policy.empty(models.config.compute), models.config.lora, base=str(models.policy.folder))


def routes(models: Models) -> None:
    """Routers can be led."""
    if models.config.algorithm.use_rollout_routing_replay is not RoutingReplay.OFF:
        Replay(models.policy.empty(models.config.compute))


RULES: tuple[Callable[[Models], None], ...] = (
    shapes,
    files,
    architectures,
    vocabularies,
    likeliest_tokens,
    adapters,
    plans,
    checkpoint,
    routes,
)


def check_models(config: Config) -> None:
    """Raises UserError for the first rule that is broken. What torch's compiler caches meanwhile is not kept."""
    models = Models.of(config)
    with tempfile.TemporaryDirectory(prefix="miles_lite-") as folder:
        given = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        try:
            for rule in RULES:
                rule(models)
        finally:
            if given == folder:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]


def _judge(given: Path, verdict: Path) -> None:
    flaw = ""
    try:
        check_models(pickle.loads(given.read_bytes()))
    except UserError as error:
        flaw = str(error)
    with drafted(verdict) as draft:
        draft.write_text(flaw, encoding="utf-8", errors="replace")


if __name__ == "__main__":
    _judge(*map(Path, sys.argv[1:]))
