"""torch's files (`.pt`, `.ckpt`), read without running code of theirs and without loading them.

The file is an uncompressed zip archive: a pickle that describes the tensors, and the bytes of each storage.
torch's `weights_only` unpickler builds tensors and plain containers and calls nothing else. A checkpoint of
PyTorch Lightning also names classes of the training that wrote it; in their place it is given a class that
ignores what it is told. Loaded to the device "meta" the tensors have no memory, only the place of their
storage.
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
    """Stands for every class or function that a file names and `weights_only` does not know.

    Whatever it is called with, it makes an empty mapping, which takes the entries and the attributes that the
    file gives to an object of that class.
    """

    def __new__(cls, *arguments: object, **options: object) -> OrderedDict:  # type: ignore[misc]
        """Makes the mapping; the arguments are left alone."""
        return OrderedDict()


def index_torch(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a state dict, or of the one in a Lightning checkpoint, by their names.

    Raises:
        CheckpointError: torch is not installed, or the file is damaged, cut short, or holds no state dict.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{path}: reading it needs torch; pip install 'smalti[ranker]'") from error
    _check_archive(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(InertPlaceholder, name) for name in unknown]):
            content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # The file's bytes decide what torch stumbles over.
        raise CheckpointError(f"{path}: damaged, or it would run code: {_reason(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: a state dict is expected, not {type(state).__name__}")
    size = path.stat().st_size
    for name, tensor in state.items():
        if not (
            isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        ):
            raise CheckpointError(f"{path}: a state dict of tensors is expected, but {name!r} is no tensor")
    return {name: check_extent(_stored(path, name, tensor), size) for name, tensor in state.items()}


def _reason(error: Exception) -> str:
    """Returns what is wrong, out of torch's many lines; not its advice to load without the check."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = [line for line in lines if line and "weights_only" not in line and "documentation" not in line]
    return telling[0] if telling else type(error).__name__


def _check_archive(path: Path) -> None:
    """Refuses a file whose tensors do not lie in it byte by byte."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
        raise CheckpointError(
            f"{path}: not a file of torch.save, or of torch before 1.6; save it with a newer one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            order = [archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder")]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cut short or damaged: its last bytes are no table of contents"
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: compressed, which torch.save does not do; save it once with torch.save"
        )
    if order not in ([], [b"little"]):
        raise CheckpointError(f"{path}: its bytes are in another order than little-endian")


def _stored(path: Path, name: str, tensor: "torch.Tensor") -> StoredTensor:
    storage = tensor.untyped_storage()
    begin = int(tensor.storage_offset())
    strides = None if tensor.is_contiguous() else tensor.stride()
    # From the first number to the last, between which there are others where the tensor is a view of a larger
    # one.
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    numbers = 1 + sum((length - 1) * step for length, step in steps) if tensor.numel() else 0
    size = numbers * tensor.element_size()
    # Where the storage begins in the file; torch.load says so of storages on the device "meta".
    offset = storage._checkpoint_offset
    if offset is None or begin * tensor.element_size() + size > storage.nbytes():
        raise CheckpointError(f"{path}: damaged: tensor {name} is not within its storage")
    segment = (int(offset) + begin * tensor.element_size(), size)
    type_name = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(path, name, type_name, tuple(tensor.shape), (segment,), strides)
