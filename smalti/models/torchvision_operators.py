"""torchvision beside a CPU build of torch.

torchvision's wheel on the package index is a CUDA build. Beside a CPU build of torch, its native library does not load,
and importing it fails with `operator torchvision::nms does not exist`, because it registers the shapes of two operators
at import. open_clip imports torchvision but uses neither operator. So the two are declared where they are missing, by
name and types only; calling one still fails.
"""

import importlib.util
from pathlib import Path

import torch

_DESCRIBED_AT_IMPORT = ("nms", "qnms")
_TYPES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators() -> bool:
    """Declares torchvision's operators where its native library does not load; call it before importing torchvision.

    Returns:
        Whether anything was declared: False where the library loads, and from the second call on.
    """
    if _registered() or (_native_library_loads() and _registered()):
        return False
    for name in _DESCRIBED_AT_IMPORT:
        torch.library.define(f"torchvision::{name}", _TYPES)
    return True


def _registered() -> bool:
    return hasattr(torch.ops.torchvision, "nms")


def _native_library_loads() -> bool:
    """Loads the library with the operators, as torchvision does when it is imported."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return False
    try:
        for library in Path(package.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True
