"""Is a weight folder fit for the model that an engine serves?

Invariant: only headers are read. SGLang ends when a tensor cannot be loaded (its roll-back reads the new folder again),
so what does not fit is refused before the server hears of it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

Shapes = dict[str, tuple[int, ...]]


class WeightsError(ValueError):
    """The folder does not hold usable weights. The message names the folder, the file and the tensor."""


def read_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in `folder`'s safetensors files. Raises WeightsError for none, and for a damaged file."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder on this node (is it on a file system that all nodes share?)")
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: damaged or incomplete: {error}") from error
    if not shapes:
        raise WeightsError(f"{folder}: holds no *.safetensors file")
    return shapes


def check_fits(folder: Path, served: Shapes) -> None:
    """Every tensor of `folder` must be one of `served`, with its shape; an empty `served` allows all. WeightsError."""
    check_shapes(read_shapes(folder), served, where=str(folder))


def check_shapes(offered: Shapes, served: Shapes, *, where: str) -> None:
    """The same for shapes that are known already; `where` they come from is named in the WeightsError."""
    for name, shape in offered.items():
        if served and served.get(name) != shape:
            expected = f"expected {list(served[name])}" if name in served else "the served model has no such tensor"
            raise WeightsError(f"{where}: {name} has shape {list(shape)}, {expected}")
