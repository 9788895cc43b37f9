"""Iteration-numbered checkpoints that are either complete or not there.

    FOLDER/iter_0000007/                      torch.distributed.checkpoint: model, optimizer; rng_00000.pt per rank
    FOLDER/latest_checkpointed_iteration.txt  "7"

Invariant: an iteration is written under another name and renamed when every rank is done; the text file names it only
after that. Model and optimizer load into any number of ranks; with the same number, and on CPU, a resumed run continues
bit for bit.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from miles_lite.errors import UserError, writing
from miles_lite.train.learner import Learner

LATEST = "latest_checkpointed_iteration.txt"


def iteration_folder(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration:07d}"


def latest_iteration(folder: Path) -> int | None:
    """The iteration that `folder` holds, or None. Raises UserError when the text file and the folder disagree."""
    marker = folder / LATEST
    if not marker.is_file():
        return None
    text = marker.read_text().strip()
    if not text.isdecimal():
        raise UserError(f"{marker} holds {text!r}, expected an iteration number")
    if not iteration_folder(folder, int(text)).is_dir():
        raise UserError(f"{marker} names iteration {text}, but {iteration_folder(folder, int(text))} does not exist")
    return int(text)


def save(learner: Learner, folder: Path, *, iteration: int) -> None:
    """Write one checkpoint; collective. `folder` is one that all ranks see."""
    final = iteration_folder(folder, iteration)
    partial = final.with_name(f".{final.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    model, optimizer = get_state_dict(learner.policy, learner.optimizer)
    state = {"model": model, "optimizer": optimizer, "updates": learner.updates}
    with writing(f"the checkpoint of iteration {iteration}", final):
        try:
            save_distributed(state, checkpoint_id=partial)
        except CheckpointException as error:  # a BaseException, which would end this actor without a word
            raise RuntimeError(str(error)) from error
        torch.save(rng_state(), partial / rng_name())
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        marker = folder / f".{LATEST}.partial"
        marker.write_text(f"{iteration}\n")
        os.replace(marker, folder / LATEST)
    dist.barrier()


def load(learner: Learner, folder: Path) -> int | None:
    """Restore the latest checkpoint of `folder` and return its iteration, or None; collective.

    Random numbers go on where this rank stopped, if there was one. Raises UserError as `latest_iteration` does.
    """
    iteration = latest_iteration(folder)
    if iteration is None:
        return None
    source = iteration_folder(folder, iteration)
    model, optimizer = get_state_dict(learner.policy, learner.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "updates": learner.updates}
    load_distributed(state, checkpoint_id=source)
    set_state_dict(
        learner.policy,
        learner.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    learner.updates = int(state["updates"])
    if (source / rng_name()).is_file():
        restore_rng(torch.load(source / rng_name(), weights_only=False))
    return iteration


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, CUDA included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_name() -> str:
    return f"rng_{dist.get_rank():05d}.pt"


def rng_state() -> dict[str, Any]:
    """What `restore_rng` takes: of Python, NumPy, torch, and every CUDA device."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
