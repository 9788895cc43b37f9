"""Ctrl-C while a run trains: the step that is under way comes to its end, and what was trained since the last
checkpoint is saved before the run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType

from ray.exceptions import RayError

from miles_lite.errors import UserError
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.watch import OvertimeError
from miles_lite.process.post_mortem import DiedError
from miles_lite.train.group import TrainError

SAVE_TIMEOUT, SUMMARY_TIMEOUT = 8.0, 2.0


class SaveWhenInterrupted:
    """Stands from when it is made until the run ends. A step is trained in `step()`: what is left of one that did not
    come to its end is nothing that could be saved."""

    def __init__(self, life: Lifetime, save: Callable[[int], None] | None) -> None:
        """`save` writes the checkpoint of a rollout, or finishes the one that is being written, and waits for it; None
        where there is no folder for it."""
        self._life, self._save = life, save
        self._training = False
        life.parts.push(self._ended)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Where it can be saved, the first wish to stop waits for its end; none that came before does."""
        self._life.watch.check()
        self._training = True
        with contextlib.ExitStack() as stack:
            if self._save is not None:
                stack.enter_context(self._life.watch.finishing(_say_finishing))
            yield
        self._training = False

    def _ended(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trained, saved = self._life.reached.trained, self._life.reached.saved
        if not isinstance(error, KeyboardInterrupt) or self._save is None or trained is None or trained == saved:
            return
        if self._training:
            print(
                f"\ninterrupted in a training step, which cannot be saved; the last checkpoint is {saved}", flush=True
            )
            return
        print(f"\ninterrupted: saving rollout {trained} before stopping", flush=True)
        try:
            with self._life.watch.at_most(SAVE_TIMEOUT):
                self._save(trained)
        except (OvertimeError, DiedError, TrainError, UserError) as failed:
            why = f"not saved: {failed or f'it takes longer than {SAVE_TIMEOUT:.0f} s'}"
            print(f"{why}; the last checkpoint is {saved}", flush=True)


def sum_up_when_interrupted(life: Lifetime, sum_up: Callable[[], object]) -> None:
    """Once all that was started since has ended, unless it takes too long."""

    def ended(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(OvertimeError, DiedError, RayError), life.watch.at_most(SUMMARY_TIMEOUT):
                sum_up()

    life.parts.push(ended)


def _say_finishing() -> None:
    print("\ninterrupted: the training step comes to its end first; Ctrl-C again ends it at once", flush=True)
