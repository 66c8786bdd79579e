"""The tensors that stages hand on to each other, as safetensors files: the same numbers give the same bytes."""

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smalti.engines.encoding import Encoding
from smalti.errors import DamagedObjectError
from smalti.registry.spec import ModelSpec
from smalti.storage import ObjectRef, ObjectStore


def encoding_bytes(encoding: Encoding) -> bytes:
    """Writes an encoding."""
    return save({"states": encoding.states.astype(np.float32), "mask": encoding.mask.astype(np.int32)})


def read_encoding(store: ObjectStore, ref: ObjectRef, spec: ModelSpec) -> Encoding:
    """Reads an encoding.

    Raises:
        MissingObjectError: it is not there.
        DamagedObjectError: it is not what was written, or none of the model's.
    """
    config = spec.transformer
    tensors = _read(store, ref)
    states = _tensor(tensors, ref.key, "states", np.float32, (config.max_text_length, config.d_model))
    mask = _tensor(tensors, ref.key, "mask", np.int32, (config.max_text_length,))
    if not mask.any() or not np.isin(mask, (0, 1)).all() or not np.isfinite(states).all():
        raise DamagedObjectError(ref.key, "its numbers are none of an encoding")
    return Encoding(states, mask)


def tokens_bytes(tokens: Int[np.ndarray, "candidates tokens"]) -> bytes:
    """Writes the image tokens of a chunk's candidates."""
    return save({"tokens": np.ascontiguousarray(tokens, np.int32)})


def read_tokens(
    store: ObjectStore, ref: ObjectRef, candidates: int, spec: ModelSpec
) -> Int[np.ndarray, "candidates tokens"]:
    """Reads the image tokens of so many candidates; raises as `read_encoding`."""
    tokens = _tensor(_read(store, ref), ref.key, "tokens", np.int32, (candidates, spec.tokens))
    if tokens.min() < 0 or tokens.max() >= spec.codebook_size:
        raise DamagedObjectError(ref.key, "a token of it is none of the model's")
    return tokens


def _read(store: ObjectStore, ref: ObjectRef) -> dict[str, np.ndarray]:
    content = store.get(ref.key, sha256=ref.sha256)
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedObjectError(ref.key, f"it is no safetensors file: {error}") from None


def _tensor(
    tensors: dict[str, np.ndarray], key: str, name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
        found = "nothing" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
        expected = f"{np.dtype(dtype)} of shape {shape}"
        raise DamagedObjectError(key, f"{name} is {found}; {expected} is expected")
    return tensor
