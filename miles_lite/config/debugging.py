"""Half of a run alone, and a look into the trainer's steps. The names are the field's."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Debugging:
    """debugging: half of the loop alone, and recording what training steps do."""

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

    use_pytorch_profiler: bool = option(
        False, help="write a trace of training steps, in Chrome's format, into the run folder's profile/"
    )
    record_memory_history: bool = option(
        False, help="write what takes the GPUs' memory in training steps into the same folder"
    )
    memory_snapshot_path: str | None = option(
        None,
        help="write that here instead; each rank adds its number to the name",
        path=True,
        needs="record_memory_history",
    )
    profile_step_start: int = option(
        10,
        help="training step with which recording begins",
        least=0,
        needs="use_pytorch_profiler or record_memory_history",
    )
    profile_step_end: int = option(
        12, help="training step before which it ends", least=1, needs="use_pytorch_profiler or record_memory_history"
    )
    profile_ranks: tuple[int, ...] = option(
        (),
        help="train ranks that record (default: all)",
        least=0,
        needs="use_pytorch_profiler or record_memory_history",
    )

    def records(self, rank: int) -> bool:
        """Whether that rank does."""
        return self.recording and (not self.profile_ranks or rank in self.profile_ranks)

    @property
    def recording(self) -> bool:
        """Whether any does."""
        return self.use_pytorch_profiler or self.record_memory_history

    @property
    def trains_alone(self) -> bool:
        """Whether there are no engines."""
        return self.debug_train_only or self.load_debug_rollout_data is not None
