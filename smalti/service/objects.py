"""The objects of the stages: tensors as safetensors files, the record of what a stage has written, and calls of the
store at the same time.

The same numbers give the same bytes. But two workers that do the same work may write different numbers, because their
machines or libraries differ. Neither overwrites the other's objects, and the record of whoever was first decides which
ones the next stage works on.
"""

import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smalti.engines.encoding import Encoding
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.registry.spec import ModelSpec
from smalti.results import OutputsFile
from smalti.storage import ObjectRef, ObjectStore

THREADS: Final = 16
"""Calls of the store that a stage makes at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


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


def find_outputs(
    store: ObjectStore, record: str, names: Sequence[str], copies: Mapping[str, str] = _NONE
) -> tuple[ObjectRef, ...] | None:
    """Returns the objects of earlier work, if they are all there.

    Args:
        store: the store.
        record: the key of the record.
        names: the names that the objects must have, in order.
        copies: by name, the key of a copy that will do as well.
    """
    try:
        objects = OutputsFile.parse(record, store.get(record)).objects
    except (MissingObjectError, DamagedObjectError):
        return None
    if [ref.name for ref in objects] != list(names):
        return None
    there = all(
        is_there(store, ref.key, ref.sha256)
        or (ref.name in copies and is_there(store, copies[ref.name], ref.sha256))
        for ref in objects
    )
    return objects if there else None


def is_there(store: ObjectStore, key: str, sha256: str) -> bool:
    """Returns whether there is an object with this content."""
    info = store.stat(key)
    return info is not None and info.sha256 == sha256


def record_outputs(
    store: ObjectStore, record: str, objects: Sequence[ObjectRef], copies: Mapping[str, str] = _NONE
) -> tuple[ObjectRef, ...]:
    """Records what was written, and returns what counts: the objects of the first writer that are still there.

    Args:
        store: the store.
        record: the key of the record.
        objects: the objects; must be durable.
        copies: as in `find_outputs`.
    """
    content = OutputsFile(objects=tuple(objects)).to_bytes()
    if store.create(record, content, content_type="application/json"):
        return tuple(objects)
    first = find_outputs(store, record, [ref.name for ref in objects], copies)
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


class StoreExecutor:
    """Runs calls in a pool of threads, with the caller's context variables, so that logs and traces know the task.

    A stage waits longer for the store than its objects take to transfer.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Runs a call in a thread of the pool."""
        return self._threads.submit(contextvars.copy_context().run, call)

    def map(self, call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns the results of a call for each item, in order; raises the first error."""
        first, *others = items
        futures = [self.submit(lambda item=item: call(item)) for item in others]  # type: ignore[misc]
        try:
            return [call(first), *(future.result() for future in futures)]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Waits for the calls that run, and ends the threads."""
        self._threads.shutdown()
