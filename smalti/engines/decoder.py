"""The VQGAN in both directions: image tokens to pictures, and pictures to image tokens."""

import numpy as np
from jaxtyping import Int, UInt8

from smalti.compilation import backend
from smalti.models.layers import compute_dtype
from smalti.models.vqgan import VQGAN
from smalti.registry.spec import ModelSpec


def default_batch_size() -> int:
    """Returns the default number of pictures per run of the program: 1 on a CPU, 4 on other devices.

    One picture keeps the cores of a CPU busy; with the published VQGAN, batches of four were slower on two cores.
    Computation for the empty rows of a partial batch is wasted.
    """
    return 1 if backend() == "cpu" else 4


class DecoderEngine:
    """Decodes and encodes in batches of a fixed size.

    One program serves every call, and a picture does not depend on the number of pictures decoded with it.
    """

    def __init__(self, vqgan: VQGAN, *, batch_size: int | None = None) -> None:
        """Makes the engine of a VQGAN.

        Args:
            vqgan: the model.
            batch_size: pictures per run of the program; by default `default_batch_size()`. Memory grows with it.
        """
        self.vqgan = vqgan
        self.batch_size = batch_size or default_batch_size()

    @classmethod
    def load(cls, spec: ModelSpec) -> "DecoderEngine":
        """Loads the engine of a model, which decodes in `compute_dtype()`.

        Raises:
            ModelError: a file cannot be used.
        """
        return cls(VQGAN.load(spec.folder.vqgan_folder, dtype=compute_dtype()))

    def prepare(self, tokens: int) -> None:
        """Compiles the program that decodes, for pictures of a number of tokens."""
        self.vqgan.prepare_to_decode(np.zeros((self.batch_size, tokens), np.int32))

    def decode(
        self, tokens: Int[np.ndarray, "pictures tokens"]
    ) -> UInt8[np.ndarray, "pictures height width 3"]:
        """Returns the pictures of image tokens; pixel values are truncated, not rounded, as in the original."""
        size = self.vqgan.config.resolution
        pictures = np.empty((len(tokens), size, size, 3), np.uint8)
        for start in range(0, len(tokens), self.batch_size):
            batch = tokens[start : start + self.batch_size]
            pixels = np.asarray(self.vqgan.decode(_padded(batch, self.batch_size)))[: len(batch)]
            pictures[start : start + len(batch)] = pixels.clip(0, 1) * 255
        return pictures

    def encode(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"]
    ) -> Int[np.ndarray, "pictures tokens"]:
        """Returns the image tokens of pictures of the model's resolution; raises `ModelError` if it has no encoder."""
        batches = [
            np.asarray(self.vqgan.encode(_padded(batch, self.batch_size).astype(np.float32) / 255))[
                : len(batch)
            ]
            for batch in self._batches(pictures)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, self.vqgan.config.tokens), np.int32)

    def _batches(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Pads a batch with zeros."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
