"""Files of tensors between the stages: safetensors, with the readings of the prompts as JSON among them."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smalti.batches import BatchPrompt
from smalti.errors import DamagedObjectError
from smalti.shards.readings import Reading, parse_readings, readings_bytes

_READINGS: Final = "readings"


def tensors_bytes(readings: Sequence[Reading], tensors: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """Returns a file of tensors and readings."""
    text = np.frombuffer(readings_bytes(readings), np.uint8)
    return save({_READINGS: text, **{name: np.ascontiguousarray(each) for name, each in tensors.items()}})


class TensorsFile:
    """A file of tensors and readings; every method raises `DamagedObjectError` if it is not valid."""

    def __init__(self, key: str, content: bytes, prompts: Sequence[BatchPrompt]) -> None:
        """Reads it.

        Args:
            key: what errors call it.
            content: the file.
            prompts: the prompts that it is about.
        """
        self._key = key
        try:
            self._tensors = load(content)
        except (SafetensorError, ValueError, KeyError):
            raise DamagedObjectError(key, "not a safetensors file") from None
        text = self.tensor(_READINGS, (np.uint8,), (None,))
        self.readings = parse_readings(key, text.tobytes(), prompts)

    def tensor(
        self, name: str, types: tuple[type[np.generic], ...], shape: tuple[int | None, ...]
    ) -> Shaped[np.ndarray, "..."]:
        """Returns a tensor of one of these types and of this shape, in which None stands for any length."""
        found = self._tensors.get(name)
        if found is None:
            raise DamagedObjectError(self._key, f"{name} is missing")
        fits = len(found.shape) == len(shape) and all(
            size in (None, given) for size, given in zip(shape, found.shape, strict=True)
        )
        if not fits or found.dtype.type not in types:
            raise DamagedObjectError(self._key, f"{name} is {found.dtype} of shape {found.shape}")
        return found
