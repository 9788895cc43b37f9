"""What a stack is made from: four groups of options and what belongs to the run.

Invariant: options that `StackOptions.taken` returns passed every check that needs nothing started.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from miles_lite.config.flags import Leftovers, take_group
from miles_lite.config.options import Checkpoint, Engines, Session, Topology
from miles_lite.config.rules import engine_rules, refuse_broken
from miles_lite.hooks import check_hooks, hooks_of
from miles_lite.model_folder import check_model_folder
from miles_lite.process.admin_key import known_key
from miles_lite.stack.engine_plans import check_engines


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """The option groups a stack needs. `known_key` is the admin key that the user's environment names."""

    topology: Topology
    checkpoint: Checkpoint
    engines: Engines
    session: Session
    max_context_len: int | None
    seed: int
    run_dir: Path
    known_key: str | None = field(default_factory=known_key, repr=False)

    @property
    def given_keys(self) -> tuple[str | None, str | None]:
        """The user's admin keys: the flag's, which wins, and the environment's."""
        return self.engines.sglang_args.get("admin_api_key"), self.known_key

    @classmethod
    def taken(
        cls, namespace: Namespace, leftovers: Leftovers, *, max_context_len: int | None, seed: int, run_dir: Path
    ) -> StackOptions:
        """From a command line whose parser has the four groups; `leftovers` are its --sglang-FLAGs. Raises UserError
        for what can be refused before anything starts."""
        topology, checkpoint = take_group(namespace, Topology), take_group(namespace, Checkpoint)
        engines = dataclasses.replace(take_group(namespace, Engines), sglang_args=leftovers.sglang)
        refuse_broken(engine_rules(topology, engines))
        check_engines(topology, engines)
        check_model_folder(checkpoint.hf_checkpoint)
        session = take_group(namespace, Session)
        check_hooks(hooks_of(session))
        return cls(
            topology=topology,
            checkpoint=checkpoint,
            engines=engines,
            session=session,
            max_context_len=max_context_len,
            seed=seed,
            run_dir=run_dir,
        )
