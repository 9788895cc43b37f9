"""Ctrl-C saves what was trained since the last checkpoint, once; of a step that did not come to its end nothing can
be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from miles_lite.errors import UnavailableError, UserError
from miles_lite.job.interrupted import SaveWhenInterrupted, sum_up_when_interrupted
from miles_lite.job.lifetime import Lifetime
from miles_lite.train.group import TrainError


class Watch:
    finished = asked = False

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def finishing(self, say: Callable[[], None]) -> Iterator[None]:
        say()
        yield
        self.finished = True

    def at_most(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def ended(
    error: BaseException | None,
    *,
    trained: int | None,
    saved: int | None,
    within: bool = False,
    fails: Exception | None = None,
) -> list[int]:
    """What is saved of a run that ends with `error`, `within` a step or after one. A save `fails` so."""
    written: list[int] = []

    def save(rollout_id: int) -> None:
        if fails is not None:
            raise fails
        written.append(rollout_id)

    with contextlib.suppress(KeyboardInterrupt, ValueError), contextlib.ExitStack() as parts:
        life = SimpleNamespace(parts=parts, watch=Watch(), reached=SimpleNamespace(trained=None, saved=None))
        interrupted = SaveWhenInterrupted(cast(Lifetime, cast(Any, life)), save)
        with interrupted.step():
            pass
        assert life.watch.finished
        life.reached.trained, life.reached.saved = trained, saved
        if error is None:
            return written
        if within:
            with interrupted.step():
                raise error
        raise error
    return written


def test_what_was_trained_since_the_last_checkpoint_is_saved() -> None:
    assert ended(KeyboardInterrupt(), trained=3, saved=1) == [3]
    assert ended(KeyboardInterrupt(), trained=3, saved=None) == [3]


def test_no_step_begins_once_a_person_wants_the_run_to_end() -> None:
    written: list[int] = []
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as parts:
        life = SimpleNamespace(parts=parts, watch=Watch(), reached=SimpleNamespace(trained=None, saved=None))
        interrupted = SaveWhenInterrupted(cast(Lifetime, cast(Any, life)), written.append)
        for step in range(3):
            with interrupted.step():
                life.watch.asked = step == 1
            life.reached.trained = step
    assert (written, life.reached.trained) == ([1], 1)


@pytest.mark.parametrize(
    "how",
    [
        {"error": None, "trained": 3, "saved": 1},
        {"error": ValueError(), "trained": 3, "saved": 1},
        {"error": KeyboardInterrupt(), "trained": 3, "saved": 3},
        {"error": KeyboardInterrupt(), "trained": None, "saved": None},
        {"error": KeyboardInterrupt(), "trained": 3, "saved": 1, "within": True},
    ],
)
def test_nothing_else_saves(how: dict[str, Any]) -> None:
    assert ended(**how) == []


@pytest.mark.parametrize("kind", [TrainError, UserError, UnavailableError])
def test_a_save_that_fails_says_what_there_is(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt(), trained=3, saved=1, fails=kind("no room")) == []
    assert "not saved: no room; the last checkpoint is 1" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "summed"), [(KeyboardInterrupt(), ["saved", "summed up"]), (ValueError(), [])])
def test_a_run_is_summed_up_after_what_it_saves(error: BaseException, summed: list[str]) -> None:
    did: list[str] = []
    with contextlib.suppress(KeyboardInterrupt, ValueError), contextlib.ExitStack() as parts:
        life = SimpleNamespace(parts=parts, watch=Watch(), reached=SimpleNamespace(trained=1, saved=0))
        sum_up_when_interrupted(cast(Lifetime, cast(Any, life)), lambda: did.append("summed up"))
        SaveWhenInterrupted(cast(Lifetime, cast(Any, life)), lambda _: did.append("saved"))
        raise error
    assert did == summed
