"""What has to be done before transformers can be imported everywhere."""

from __future__ import annotations

from typing import Any


def import_transformers() -> Any:
    """The `transformers` module, importable also beside a torchvision that was built for another torch.

    transformers imports torchvision wherever it is installed. A CUDA build of it next to a CPU torch fails for want of
    two operators that no language model calls; declaring them is enough.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return transformers
    except RuntimeError:
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return transformers
