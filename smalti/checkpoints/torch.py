"""Files of torch (`.pt`, `.ckpt`), read without running their code and without loading them.

A file is an uncompressed zip archive: a pickle that describes the tensors, and the bytes of each storage. torch's
`weights_only` unpickler builds only tensors and plain containers. A checkpoint of PyTorch Lightning also refers to
classes of the training code; they are replaced by a class that ignores its arguments. Tensors that are loaded to the
device "meta" have no memory, only the offset of their storage.
"""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from smalti.checkpoints.tensor import StoredTensor, check_extent
from smalti.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class InertPlaceholder:
    """Replaces every class or function in a file that `weights_only` does not allow.

    Calling it makes an empty mapping, which accepts the entries and attributes that the file sets on the object.
    """

    def __new__(cls, *arguments: object, **options: object) -> OrderedDict:  # type: ignore[misc]
        """Makes the mapping and ignores the arguments."""
        return OrderedDict()


def index_torch(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a state dict by their names; also of the state dict in a Lightning checkpoint.

    Raises:
        CheckpointError: torch is not installed, or the file is damaged, truncated, or not a state dict.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: torch is needed to read this file; pip install 'smalti[ranker]'"
        ) from error
    _check_archive(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(InertPlaceholder, name) for name in unknown]):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # Damage can make torch raise anything.
        raise CheckpointError(
            f"{path}: damaged, or it would run code ({_reason(error)}); copy it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: must contain a state dict, not {type(state).__name__}")
    size = path.stat().st_size
    for name, tensor in state.items():
        if not (
            isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        ):
            raise CheckpointError(
                f"{path}: must contain a state dict of tensors, but {name!r} is not a dense tensor"
            )
    return {name: check_extent(_stored(path, name, tensor), size) for name, tensor in state.items()}


def _reason(error: Exception) -> str:
    """Returns the relevant line of torch's long message, without its advice to load unsafely."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = [line for line in lines if line and "weights_only" not in line and "documentation" not in line]
    return telling[0] if telling else type(error).__name__


def _check_archive(path: Path) -> None:
    """Raises `CheckpointError` if the bytes of the tensors are not stored in the file as they are."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
        raise CheckpointError(
            f"{path}: not written by torch.save of torch 1.6 or newer; save it again with a newer torch"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            order = [archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder")]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged: its end is not that of a zip archive; copy it again"
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: compressed, which torch.save does not do; save it again with torch.save"
        )
    if order not in ([], [b"little"]):
        raise CheckpointError(f"{path}: not little-endian; save it again on a little-endian machine")


def _stored(path: Path, name: str, tensor: "torch.Tensor") -> StoredTensor:
    storage = tensor.untyped_storage()
    begin = int(tensor.storage_offset())
    strides = None if tensor.is_contiguous() else tensor.stride()
    # From the first number to the last; a view of a larger tensor has foreign numbers in between.
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    numbers = 1 + sum((length - 1) * step for length, step in steps) if tensor.numel() else 0
    size = numbers * tensor.element_size()
    # Offset of the storage in the file; torch.load sets it for storages on the device "meta".
    offset = storage._checkpoint_offset
    if offset is None or begin * tensor.element_size() + size > storage.nbytes():
        raise CheckpointError(f"{path}: damaged: tensor {name} exceeds its storage; copy it again")
    segment = (int(offset) + begin * tensor.element_size(), size)
    type_name = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(path, name, type_name, tuple(tensor.shape), (segment,), strides)
