"""Half of a run alone, and a look into the trainer's steps. The names are the field's."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Debugging:
    """debugging: half of the loop alone."""

    debug_rollout_only: bool = option(False, help="roll out and log, without trainers (as `miles-lite rollout`)")
    debug_train_only: bool = option(
        False, help="train, without engines, on what --load-debug-rollout-data holds; nothing is evaluated"
    )
    save_debug_rollout_data: str | None = option(
        None, help="write each step's rollouts to this file; {rollout_id} is replaced by its number", path=True
    )
    load_debug_rollout_data: str | None = option(
        None, help="train on these files instead of rolling out: --debug-train-only", path=True
    )

    @property
    def trains_alone(self) -> bool:
        """Whether there are no engines."""
        return self.debug_train_only or self.load_debug_rollout_data is not None
