"""Every option of a run: typed, frozen groups whose names and defaults are those of the launchers this field uses.

Invariant: a `Config` that `parse` gives is consistent: each value one that its option can have (`option.settled`), and
no contradictions between them (`Config.check`), before anything is started.
Rooms receive the groups they need, never an argparse Namespace.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from miles_lite.config import algorithm_rules, debugging_rules, device_rules, eval_sets, partners, rules
from miles_lite.config.choices import Device, RoutingReplay
from miles_lite.config.debugging import Debugging
from miles_lite.config.engines import WeightUpdates
from miles_lite.config.environments import named
from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.launcher_flags import Leftovers
from miles_lite.config.lora import LoRA
from miles_lite.config.model import Checkpoint
from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.config.redaction import redacted, write_private
from miles_lite.config.rewards import Overlong, Rewards
from miles_lite.config.rollouts import Data, Evaluation, Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.config.serving import Serving
from miles_lite.config.session_options import Session
from miles_lite.config.tracking import Logging
from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.config.yaml_files import ConfigFiles, expanded
from miles_lite.errors import writing


@dataclass(frozen=True, kw_only=True)
class Config(Serving):
    """All groups of one run, checked: what serves the model, and what trains it."""

    checkpoint: Checkpoint
    data: Data
    rollouts: Rollouts
    rewards: Rewards = field(metadata=partners.ROLLED_OUT)
    scheduling: Scheduling
    algorithm: Algorithm
    optimizer: Optimizer
    parallelism: Parallelism
    compute: Compute
    lora: LoRA
    updates: WeightUpdates = field(metadata=partners.ROLLED_OUT)
    evaluation: Evaluation = field(metadata=partners.ROLLED_OUT)
    logging: Logging
    debugging: Debugging
    files: ConfigFiles

    @property
    def global_batch_size(self) -> int:
        """Rollouts per optimizer step."""
        total = self.rollouts.rollout_batch_size * self.rollouts.n_samples_per_prompt
        if self.algorithm.num_steps_per_rollout:
            return total // max(self.algorithm.num_steps_per_rollout, 1)
        return self.algorithm.global_batch_size or total

    def ahead(self) -> Self:
        """With rollouts one step ahead of the trainer, where it is not said how far. Raises UserError where it is said
        that they are not to be."""
        return dataclasses.replace(self, scheduling=self.scheduling.ahead()).check()

    def held_out(self, name: str) -> Data:
        """How the rows of a held-out dataset are read."""
        options = self.evaluation
        flags = {"input_key": options.eval_input_key, "label_key": options.eval_label_key}
        own = {key: value for key, value in options.settings(name).items() if key in eval_sets.DATA}
        return dataclasses.replace(self.data, **{key: value for key, value in flags.items() if value} | own)

    @property
    def overlong(self) -> Overlong | None:
        """What is taken from the rewards of long responses, if anything is."""
        buffer, longest = self.rewards.overlong_buffer_len, self.rollouts.rollout_max_response_len
        return None if buffer is None else Overlong(longest, buffer, self.rewards.overlong_penalty_factor)

    @property
    def updates_in_all(self) -> int:
        """Optimizer steps of the run; 0 where --num-epoch says how long it is."""
        total = self.rollouts.rollout_batch_size * self.rollouts.n_samples_per_prompt
        return (self.rollouts.num_rollout or 0) * max(1, total // self.global_batch_size)

    @property
    def dp_size(self) -> int:
        """Batches that a step is split into; ranks with equal `dp_rank` train the same one."""
        return self.topology.world_size // self.parallelism.ranks_per_batch

    def dp_rank(self, rank: int) -> int:
        """Which of the `dp_size` batches a rank trains."""
        return rank // self.parallelism.ranks_per_batch

    def as_dict(self) -> dict[str, Any]:
        """Every option by group, as config.json has it: without SGLang's keys and passwords, and wandb's."""
        shown = dataclasses.asdict(self)
        shown["logging"] = redacted(shown["logging"])
        shown["engines"]["sglang_args"] = redacted(self.engines.sglang_args)
        return shown

    def write(self) -> None:
        """Write config.json into the run folder, for its owner alone."""
        path = self.run_dir / "config.json"
        with writing("the run's configuration", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, json.dumps(self.as_dict(), indent=2))

    def on_device(self, device: Device) -> rules.Rules:
        """What cannot be where trainers' slots are such devices."""
        return device_rules.on_device(device, self.parallelism, self.compute, self.debugging)

    def contradictions(self) -> rules.Rules:
        device = self.topology.device
        return [
            *rules.length(self.rollouts, self.optimizer),
            *rules.curriculum(self.data),
            *rules.batches(self.rollouts, self.algorithm, batch=self.global_batch_size),
            *algorithm_rules.all_rules(self.rollouts, self.rewards, self.algorithm, self.evaluation),
            *algorithm_rules.shared_layers(self.algorithm, self.parallelism),
            *rules.overlap(self.rollouts, self.scheduling, self.updates),
            *rules.sampling(self.rollouts, self.session),
            *rules.rewards(self.rewards, self.data),
            *rules.environment(self.data, self.rollouts, self.evaluation),
            *rules.parallel(self.topology, self.parallelism, self.compute),
            *(() if device == "auto" else self.on_device(device)),
            *rules.folders(self.checkpoint, self.evaluation),
            *debugging_rules.halves(self.debugging, self.algorithm),
            *debugging_rules.recording(self.debugging, self.topology, steps=self.rollouts.num_rollout),
            *super().contradictions(),
        ]


def parse(argv: Sequence[str], prog: str = "miles-lite train") -> tuple[Config, Leftovers]:
    """Command line to a checked Config, plus what was accepted and ignored. Raises UserError."""
    parser = parser_of(Config, prog=prog)
    config, leftovers = parse_known(parser, expanded(argv, parser, Config), Config)
    leftovers = dataclasses.replace(leftovers, alone=partners.alone(config))
    if config.algorithm.use_rollout_routing_replay is not RoutingReplay.OFF:
        args = {**config.engines.sglang_args, "enable_return_routed_experts": True}
        config = dataclasses.replace(config, engines=dataclasses.replace(config.engines, sglang_args=args))
    config = dataclasses.replace(config, rewards=config.rewards.settled(), session=_answered(config))
    if config.optimizer.lr_warmup_fraction is not None:
        config = dataclasses.replace(config, optimizer=config.optimizer.warmed(config.updates_in_all))
    if config.algorithm.loss_constant_length is None:
        length = config.rollouts.rollout_max_response_len
        config = dataclasses.replace(
            config, algorithm=dataclasses.replace(config.algorithm, loss_constant_length=length)
        )
    return config.check(), leftovers


def _answered(config: Config) -> Session:
    """The session's options, with the role that the environment answers as among those that may be appended."""
    known = named(config.data.environment)[0] if config.data.environment else None
    roles = config.session.tito_allowed_append_roles
    if known is None or known.answers_as in (None, *roles):
        return config.session
    return dataclasses.replace(config.session, tito_allowed_append_roles=(*roles, str(known.answers_as)))
