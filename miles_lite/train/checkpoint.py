"""Iteration-numbered checkpoints that are either complete or not there, written while training goes on.

    FOLDER/iter_0000007/                      torch.distributed.checkpoint: model, optimizer; rng_00000.pt per rank
    FOLDER/latest_checkpointed_iteration.txt  "7"

Invariant: an iteration is written under another name and renamed when every rank is done; the text file names it only
after that. What is written is what was there when writing began. Model and optimizer load into any number of ranks and
any mesh; with the same number, and on CPU, a resumed run continues bit for bit.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor

from miles_lite.config.model import Checkpoint
from miles_lite.errors import UserError, writing
from miles_lite.process.drafted import drafted
from miles_lite.train.iterations import LATEST, iteration_folder, latest_iteration, retained
from miles_lite.train.learner import Learner
from miles_lite.train.portable import state_of
from miles_lite.train.rng import restore_rng, rng_state


class Saver:
    """Writes checkpoints, one at a time, in a thread with a process group of its own: its collectives must not mix with
    those of training."""

    def __init__(self, options: Checkpoint) -> None:
        """Collective."""
        self._options = options
        self._group: ProcessGroup = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def begin(self, learner: Learner, folder: Path, *, iteration: int) -> None:
        """Write one checkpoint, of what there is now; `folder` is one that all ranks see. What `finish` would raise of
        the one before is raised here. Collective."""
        self.finish()
        state = _copied(state_of(learner, optimizer=self._options.save_optim))
        self._writing = self._thread.submit(self._write, state, rng_state(), folder, iteration)

    def finish(self) -> None:
        """Wait until what was begun is complete. Raises UserError when the disk is full."""
        writing_now, self._writing = self._writing, None
        if writing_now is not None:
            writing_now.result()

    def _write(self, state: dict[str, Any], rng: dict[str, Any], folder: Path, iteration: int) -> None:
        final = iteration_folder(folder, iteration)
        partial = final.with_name(f".{final.name}.partial")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier(self._group)
        with writing(f"the checkpoint of iteration {iteration}", final):
            try:
                save_distributed(state, checkpoint_id=partial, process_group=self._group)
            except CheckpointException as error:  # a BaseException, which would end this actor without a word
                raise RuntimeError(str(error)) from error
            torch.save(rng, partial / rng_name())
        dist.barrier(self._group)
        if first:
            before = latest_iteration(folder)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            with drafted(folder / LATEST) as marker:
                marker.write_text(f"{iteration}\n")
            if before not in (None, iteration) and not retained(before, self._options.save_retain_interval):
                shutil.rmtree(iteration_folder(folder, before), ignore_errors=True)
        dist.barrier(self._group)


def load(learner: Learner, folder: Path, options: Checkpoint | None = None) -> int | None:
    """Restore the latest checkpoint of `folder` and return its iteration; None when there is none, and with --finetune,
    which takes nothing but the weights. Collective.

    Random numbers go on where this rank stopped, if there were as many. Raises UserError as `latest_iteration` does,
    and when the optimizer's state is not there.
    """
    chosen = options or Checkpoint()
    iteration = latest_iteration(folder)
    if iteration is None:
        return None
    source = iteration_folder(folder, iteration)
    check_saved(source, chosen)
    state = state_of(learner, optimizer=_with_optimizer(chosen))
    with _readable(source):
        load_distributed(state, checkpoint_id=source)
        _check_finite(state)
    if chosen.finetune:
        return None
    learner.updates = int(state["updates"])
    if chosen.load_rng and len(list(source.glob("rng_*.pt"))) == dist.get_world_size():
        restore_rng(torch.load(source / rng_name(), weights_only=False))
    return iteration


@contextlib.contextmanager
def _readable(source: Path) -> Iterator[None]:
    """In its block a checkpoint is read. Raises UserError where it is damaged or of another model."""
    try:
        yield
    except (CheckpointException, LookupError, ValueError, TypeError, EOFError, OSError, RuntimeError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        others = sorted(path.name for path in source.parent.glob("iter_*") if path != source)
        older = f"write the number of one of {', '.join(others)} into {source.parent / LATEST}"
        raise UserError(
            f"{source} cannot be loaded: it is damaged, or of another model or other --lora-rank ({words[-1][:300]}).\n"
            f"  {f'To go on from an older one, {older}.' if others else 'There is no older one: give another --load.'}"
        ) from error


def _check_finite(state: object, name: str = "") -> None:
    """Of every tensor, what this rank has of it. Raises ValueError."""
    if isinstance(state, dict):
        for key, value in state.items():
            _check_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, torch.Tensor) and state.is_floating_point():
        local = state.to_local() if isinstance(state, DTensor) else state
        if not bool(torch.isfinite(local).all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def check_saved(source: Path, options: Checkpoint, *, adapted: bool | None = None) -> None:
    """Refuse a checkpoint that lacks what is to be loaded, or, where it is said whether there are any, has other
    adapters than the run. Raises UserError."""
    with _readable(source):
        names = list(FileSystemReader(source).read_metadata().state_dict_metadata)
    if _with_optimizer(options) and not any(name.startswith("optimizer.") for name in names):
        raise UserError(f"{source} was saved with --no-save-optim: give --no-load-optim to begin with a new optimizer")
    has = any(".lora_" in name for name in names)
    if adapted is not None and adapted != has:
        raise UserError(f"{source} was saved {'with' if has else 'without'} --lora-rank: go on as it began")


def _with_optimizer(options: Checkpoint) -> bool:
    return options.load_optim and not options.finetune


def rng_name() -> str:
    return f"rng_{dist.get_rank():05d}.pt"


def _copied(state: Any) -> Any:
    """The same on the CPU, in memory of its own."""
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state.detach().to("cpu", copy=True) if isinstance(state, torch.Tensor) else state
