"""After which rollouts a run evaluates and saves."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.options import Config


@dataclass(frozen=True)
class Due:
    """Pure: of the options and of how many rollouts there are."""

    config: Config
    num_rollout: int

    def evaluation(self, *, after: int | None = None) -> bool:
        """Before the first step (no `after`), every --eval-interval rollouts, and after the last."""
        options = self.config.evaluation
        if options.eval_interval is None:
            return False
        if after is None:
            return not options.skip_eval_before_train
        return self._periodic(after, options.eval_interval)

    def save(self, *, after: int) -> bool:
        """Every --save-interval rollouts and after the last, where there is a folder for it."""
        options = self.config.checkpoint
        return options.save is not None and self._periodic(after, options.save_interval)

    def _periodic(self, rollout_id: int, interval: int | None) -> bool:
        last = rollout_id == self.num_rollout - 1
        return last or (interval is not None and (rollout_id + 1) % interval == 0)
