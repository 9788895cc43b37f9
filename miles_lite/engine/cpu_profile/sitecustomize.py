"""Lets the stock SGLang wheel run on a machine without CUDA: six patches at import time, no file edited. (What SGLang
offers by itself is used as such: see served_model.)

This folder goes in front of the PYTHONPATH of CPU servers only (miles_lite/engine/cpu_shim.py); Python runs this
file at start-up. It stands alone: nothing of miles_lite is imported. A sitecustomize further down the path still runs.

sglang                           nothing is collected while SGLang is imported, which is a fifth of that time, nor is
                                 later what the import made.
torchvision                      PyPI builds need CUDA's C++ ops; their two declarations let `import torchvision` pass.
sglang...pool_host.common        host memory pools are plain memory, not registered with the CUDA driver.
sglang...pool_host.mha          the hierarchical cache copies rows by index, where CUDA has a kernel for it.
sglang...entrypoints.engine      scheduler and detokenizer are forked: SGLang is imported once, where spawning imports
                                 it three times. No CUDA context and no thread of its own exists at that point.
sglang...mooncake.conn           page indices go through numpy, not through pinned tensors and CUDA events.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def _declare_torchvision_ops() -> None:
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _use_plain_host_memory(module: ModuleType) -> None:
    import torch

    def allocate(
        dims: Sequence[int], dtype: torch.dtype, device: str, *_args: object, **_options: object
    ) -> torch.Tensor:
        return torch.empty(dims, dtype=dtype, device=device)

    module.ALLOC_MEMORY_FUNCS["cpu"] = allocate


def _copy_cache_rows(module: ModuleType) -> None:
    """Between the cache and its host copy, both plain memory: row src_indices[i] goes to row dst_indices[i]."""

    def transfer(
        *,
        src_layers: Sequence[torch.Tensor],
        dst_layers: Sequence[torch.Tensor],
        src_indices: torch.Tensor,
        dst_indices: torch.Tensor,
        page_size: int,
    ) -> None:
        for source, target in zip(src_layers, dst_layers, strict=True):
            target[dst_indices] = source[src_indices]

    vars(module)["transfer_kv_direct"] = transfer
    module.HostKVCache.pin_memory = property(lambda pool: False, lambda pool, value: None)


def _fork_processes(module: ModuleType) -> None:
    import multiprocessing

    configure = module._set_envs_and_config

    def configure_and_fork(server_args: object) -> None:
        configure(server_args)
        multiprocessing.set_start_method("fork", force=True)
        gc.freeze()
        gc.enable()

    vars(module)["_set_envs_and_config"] = configure_and_fork


def _send_indices_through_numpy(module: ModuleType) -> None:
    module.MooncakeKVSender.supports_host_tensor_indices = False


BEFORE_IMPORT: dict[str, Callable[[], None]] = {
    "sglang": gc.disable,
    "torchvision": _declare_torchvision_ops,
}
AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.mem_cache.pool_host.common": _use_plain_host_memory,
    "sglang.srt.mem_cache.pool_host.mha": _copy_cache_rows,
    "sglang.srt.entrypoints.engine": _fork_processes,
    "sglang.srt.disaggregation.mooncake.conn": _send_indices_through_numpy,
}


class PatchedLoader(importlib.abc.Loader):
    """Loads as the module's own loader does, then applies the patch."""

    def __init__(self, loader: importlib.abc.Loader, patch: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)


class PatchFinder(importlib.abc.MetaPathFinder):
    """Runs each patch once, when its module is first imported; finds nothing else itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if prepare := BEFORE_IMPORT.pop(name, None):
            prepare()
        if patch := AFTER_IMPORT.pop(name, None):
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is not None and spec.loader is not None:
                spec.loader = PatchedLoader(spec.loader, patch)
            return spec
        return None


def run_next_sitecustomize() -> None:
    """Run the sitecustomize that this one shadows, if there is one."""
    here = os.path.realpath(os.path.dirname(__file__))
    others = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, PatchFinder())
run_next_sitecustomize()
