"""The objects of the stages: tensors as safetensors files, and the record of what a stage has written.

The same numbers give the same bytes. But two workers that do the same work may write different numbers, because their
machines or libraries differ. Neither overwrites the other's objects, and the record of whoever was first decides which
ones the next stage works on.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smalti.engines.encoding import Encoding
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.registry.spec import ModelSpec
from smalti.results import OutputsFile
from smalti.storage import ObjectRef, ObjectStore


def encoding_bytes(encoding: Encoding) -> bytes:
    """Returns an encoding as a file."""
    return save({"states": encoding.states.astype(np.float32), "mask": encoding.mask.astype(np.int32)})


def load_encoding(store: ObjectStore, ref: ObjectRef, spec: ModelSpec) -> Encoding:
    """Loads an encoding.

    Raises:
        MissingObjectError: the object is missing.
        DamagedObjectError: the object is not what was written, or does not fit the model.
    """
    config = spec.transformer
    tensors = _read(store, ref)
    states = _tensor(tensors, ref.key, "states", np.float32, (config.max_text_length, config.d_model))
    mask = _tensor(tensors, ref.key, "mask", np.int32, (config.max_text_length,))
    if not mask.any() or not np.isin(mask, (0, 1)).all() or not np.isfinite(states).all():
        raise DamagedObjectError(ref.key, "its mask or states are invalid")
    return Encoding(states, mask)


def tokens_bytes(tokens: Int[np.ndarray, "candidates tokens"]) -> bytes:
    """Returns the image tokens of a chunk as a file."""
    return save({"tokens": np.ascontiguousarray(tokens, np.int32)})


def load_tokens(
    store: ObjectStore, ref: ObjectRef, candidates: int, spec: ModelSpec
) -> Int[np.ndarray, "candidates tokens"]:
    """Loads the image tokens of a chunk; raises as `load_encoding` does."""
    tokens = _tensor(_read(store, ref), ref.key, "tokens", np.int32, (candidates, spec.tokens))
    # The transformer that has drawn them may be that of another model, which uses more of the codebook.
    if tokens.min() < 0 or tokens.max() >= spec.vqgan.n_embed:
        raise DamagedObjectError(ref.key, "contains a token outside the model's codebook")
    return tokens


def load_tokens_row(
    store: ObjectStore, ref: ObjectRef, row: int, spec: ModelSpec
) -> Int[np.ndarray, " tokens"]:
    """Loads the image tokens of one candidate of a chunk; raises as `load_encoding` does."""
    tensors = _read(store, ref)
    found = tensors.get("tokens")
    rows = len(found) if found is not None and found.ndim else 0
    tokens = _tensor(tensors, ref.key, "tokens", np.int32, (rows, spec.tokens))
    if row >= rows or tokens.min() < 0 or tokens.max() >= spec.vqgan.n_embed:
        raise DamagedObjectError(ref.key, f"has no valid tokens in row {row}")
    return tokens[row]


def find_outputs(store: ObjectStore, record: str, names: Sequence[str]) -> tuple[ObjectRef, ...] | None:
    """Returns the objects of earlier work, if they are all there.

    Args:
        store: the store.
        record: the key of the record.
        names: the names that the objects must have, in order.
    """
    try:
        objects = OutputsFile.parse(record, store.get(record)).objects
    except (MissingObjectError, DamagedObjectError):
        return None
    if [ref.name for ref in objects] != list(names):
        return None
    for ref in objects:
        info = store.stat(ref.key)
        if info is None or info.sha256 != ref.sha256:
            return None
    return objects


def record_outputs(store: ObjectStore, record: str, objects: Sequence[ObjectRef]) -> tuple[ObjectRef, ...]:
    """Records what was written, and returns what counts: the objects of the first writer that are still there.

    Args:
        store: the store.
        record: the key of the record.
        objects: the objects; must be durable.
    """
    content = OutputsFile(objects=tuple(objects)).to_bytes()
    if store.create(record, content, content_type="application/json"):
        return tuple(objects)
    first = find_outputs(store, record, [ref.name for ref in objects])
    if first is not None:
        return first
    # The objects of the first writer are lost.
    store.put(record, content, content_type="application/json")
    return tuple(objects)


def _read(store: ObjectStore, ref: ObjectRef) -> dict[str, np.ndarray]:
    content = store.get(ref.key, sha256=ref.sha256)
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedObjectError(ref.key, "not a safetensors file") from error


def _tensor(
    tensors: dict[str, np.ndarray], key: str, name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
        found = "missing" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
        expected = f"{np.dtype(dtype)} of shape {shape}"
        raise DamagedObjectError(key, f"{name} is {found}; must be {expected}")
    return tensor
