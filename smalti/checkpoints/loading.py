"""Loading weights from every supported format, and saving them as `model.safetensors`.

Opening a checkpoint reads only headers: the name, shape and type of every tensor are compared with the configuration
before any weight is read. Then each tensor is read from the file straight into its array, so that loading takes little
more memory than the weights. Code in a file is never run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalti.checkpoints.msgpack import index_msgpack
from smalti.checkpoints.names import (
    DALLEBART_LAYOUT,
    REFINER_LAYOUT,
    VQGAN_LAYOUT,
    Axes,
    Layout,
    Shape,
    Source,
    Spelling,
)
from smalti.checkpoints.safetensors import index_safetensors, write_safetensors
from smalti.checkpoints.tensor import StoredTensor
from smalti.checkpoints.torch import index_torch
from smalti.errors import CheckpointError, ModelError

__all__ = [
    "DALLEBART_LAYOUT",
    "REFINER_LAYOUT",
    "VQGAN_LAYOUT",
    "Checkpoint",
    "Layout",
    "has_optional_part",
    "load_parameters",
    "load_tensors",
    "open_checkpoint",
    "save_parameters",
]

WEIGHTS_FILE = "model.safetensors"
LFS_POINTER = b"version https://git-lfs"
READERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    "safetensors": index_safetensors,
    "msgpack": index_msgpack,
    "torch": index_torch,
}

Selector = Callable[[str], bool]


def every(name: str) -> bool:
    """Selects every tensor."""
    return True


def load_parameters(
    folder: Path, expected: Mapping[str, Shape], layout: Layout, *, select: Selector = every
) -> dict[str, np.ndarray]:
    """Reads the weights of a network.

    Args:
        folder: the folder of the weights, or a single file.
        expected: shape of every parameter by its name, layers stacked on axis 0.
        layout: the formats to look for: `DALLEBART_LAYOUT`, `VQGAN_LAYOUT` or `REFINER_LAYOUT`.
        select: returns whether to read the tensor with this name; a file without selected tensors may be missing.

    Returns:
        The selected tensors by their names, in the type of the file: float32, float16 or bfloat16. Optional tensors
        are left out if the file does not have them.

    Raises:
        ModelError: the folder does not exist, has no weights, or has several files that may be meant.
        CheckpointError: a file is damaged, truncated, or does not match `expected`; names the tensor.
    """
    checkpoint = open_checkpoint(folder, expected, layout, select=select)
    return {name: checkpoint.read(name) for name in checkpoint}


def load_tensors(path: Path, select: Selector = every) -> dict[str, np.ndarray]:
    """Reads the selected tensors of a file of torch or safetensors, under their names there.

    Raises:
        ModelError: the file is missing, cannot be read, or has another format.
        CheckpointError: the file is damaged or truncated, or a tensor has another type than floating point.
    """
    kind = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".ckpt": "torch"}.get(path.suffix)
    if kind is None:
        raise ModelError(f"{path}: must be a .safetensors file or a .pt, .pth or .ckpt file of torch")
    found = {name: tensor for name, tensor in _index(path, kind).items() if select(name)}
    tensors = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in found.items()}
    for name, tensor in found.items():
        tensor.read_into(tensors[name])
    return tensors


def save_parameters(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `model.safetensors` into a folder atomically.

    Raises:
        CheckpointError: the type of a tensor is not float32, float16 or bfloat16.
    """
    sizes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(Path(folder) / WEIGHTS_FILE, sizes, tensors.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The source of one of our tensors in a file."""

    shape: Shape
    """Shape of our tensor."""
    pieces: tuple[StoredTensor, ...]
    """The tensor in the file, or its layers in order."""
    stacked: bool
    """Whether the pieces are layers, to be stacked on axis 0."""
    axes: Axes | None
    """For each axis of our tensor (or layer) the axis of the piece; None if the order is the same."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers, the same in all pieces."""
        return self.pieces[0].dtype


class Checkpoint(Mapping[str, Part]):
    """A network's weights in their files, checked by the headers but not read yet."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def files(self) -> set[Path]:
        """The files that contain the tensors."""
        return {piece.path for part in self._parts.values() for piece in part.pieces}

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor.

        Raises:
            CheckpointError: the file has been truncated since it was opened.
        """
        part = self._parts[name]
        tensor = np.empty(part.shape, part.dtype)
        if part.stacked:
            for layer, piece in enumerate(part.pieces):
                piece.read_into(tensor[layer], part.axes)
        else:
            part.pieces[0].read_into(tensor, part.axes)
        return tensor

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors` into a folder atomically, with one tensor in memory at a time.

        Raises:
            CheckpointError: a file has been truncated since it was opened.
        """
        sizes = {name: (part.dtype, part.shape) for name, part in self._parts.items()}
        write_safetensors(folder / WEIGHTS_FILE, sizes, self.read)


def open_checkpoint(
    folder: Path, expected: Mapping[str, Shape], layout: Layout, *, select: Selector = every
) -> Checkpoint:
    """Finds a network's weights and checks them by their headers; arguments and errors as in `load_parameters`."""
    folder = Path(folder)
    if not folder.exists():
        raise ModelError(
            f"{folder}: no such folder; give the folder with the weights of a {layout.network} model"
        )
    parts: dict[str, Part] = {}
    for source, path in _find_files(folder, layout, [name for name in expected if select(name)]):
        theirs = {name: shape for name, shape in expected.items() if name.startswith(source.prefixes)}
        parts |= _fit(_index(path, source.kind), path, theirs, source, layout)
    return Checkpoint({name: parts[name] for name in expected if name in parts and select(name)})


def has_optional_part(folder: Path, layout: Layout) -> bool:
    """Returns whether a network's weights contain its optional tensors; reads only the header of the file.

    Raises:
        ModelError: there are no weights, or the file cannot be read.
    """
    prefix = layout.optional[0]
    names = (
        name for source, path in _find_files(folder, layout, [prefix]) for name in _index(path, source.kind)
    )
    # Names in torch have dots instead of slashes.
    return any(name.replace(".", "/").startswith(prefix) for name in names)


def _find_files(folder: Path, layout: Layout, wanted: list[str]) -> list[tuple[Source, Path]]:
    """Returns the files of the first format that is present, without files that hold nothing wanted."""
    for sources in layout.formats:
        found = {source: source.find(folder) for source in sources}
        if not any(found.values()):
            continue
        for paths in found.values():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise ModelError(f"{folder}: has both {names}; keep only one of them")
        needed = [source for source in sources if any(name.startswith(source.prefixes) for name in wanted)]
        for source in needed:
            if not found[source]:
                others = ", ".join(path.name for paths in found.values() for path in paths)
                raise ModelError(
                    f"{folder}: {' or '.join(source.file_names)} is missing beside {others}; add it"
                )
        return [(source, found[source][0]) for source in needed]
    choices = (" with ".join(" or ".join(source.file_names) for source in files) for files in layout.formats)
    problem = "has no weights" if folder.is_dir() else "not a file of weights"
    raise ModelError(f"{folder}: {problem} of a {layout.network} model; expected {'; '.join(choices)}")


def _index(path: Path, kind: str) -> dict[str, StoredTensor]:
    """Reads the headers of a file."""
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`")
        return READERS[kind](path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def _fit(
    found: Mapping[str, StoredTensor],
    path: Path,
    expected: Mapping[str, Shape],
    source: Source,
    layout: Layout,
) -> dict[str, Part]:
    """Matches expected tensors with those of a file; raises `CheckpointError` if they differ."""
    plans = [(table, table.spell(expected)) for table in source.tables]
    # Files with stacked layers and files with separate layers have hardly a name in common.
    table, plan = max(plans, key=lambda choice: len(found.keys() & _shapes(choice[1]).keys()))
    optional = {name: spelling for name, spelling in plan.items() if name.startswith(layout.optional)}
    if found.keys().isdisjoint(_shapes(optional)):
        plan = {name: spelling for name, spelling in plan.items() if name not in optional}
    shapes = _shapes(plan)
    extra = [tensor for name, tensor in found.items() if name not in shapes and not table.ignores(name)]
    neutral = [tensor for tensor in extra if table.is_neutral(tensor.name)]
    _refuse_missing([name for name in shapes if name not in found], path, shapes)
    _refuse_unexpected([tensor for tensor in extra if tensor not in neutral])
    parts = {}
    for name, spelling in plan.items():
        pieces = tuple(found[their_name] for their_name in spelling.names)
        _refuse_other_sizes(pieces, spelling.shape)
        parts[name] = Part(shape=expected[name], pieces=pieces, stacked=spelling.stacked, axes=spelling.axes)
    for tensor in neutral:
        _refuse_other_numbers_than_one(tensor)
    return parts


def _shapes(plan: Mapping[str, Spelling]) -> dict[str, Shape]:
    """Returns the expected shapes of the tensors in a file, by their names there."""
    return {their_name: spelling.shape for spelling in plan.values() for their_name in spelling.names}


def _refuse_missing(names: list[str], path: Path, shapes: Mapping[str, Shape]) -> None:
    if names:
        raise CheckpointError(
            f"{path}: tensor {names[0]} of shape {shapes[names[0]]} is missing{_and_more(names)}; "
            "config.json requires it"
        )


def _refuse_unexpected(tensors: list[StoredTensor]) -> None:
    if tensors:
        first = tensors[0]
        raise CheckpointError(
            f"{first.path}: tensor {first.name} of shape {first.shape} is unexpected{_and_more(tensors)}; "
            "config.json does not allow it"
        )


def _refuse_other_sizes(pieces: Sequence[StoredTensor], shape: Shape) -> None:
    for piece in pieces:
        if piece.shape != shape:
            raise CheckpointError(
                f"{piece.path}: tensor {piece.name} has shape {piece.shape}, but config.json requires {shape}"
            )
        if piece.dtype != pieces[0].dtype:
            raise CheckpointError(
                f"{piece.path}: tensor {piece.name} has type {piece.type_name}, "
                f"but {pieces[0].name} has {pieces[0].type_name}; they must be the same"
            )


def _refuse_other_numbers_than_one(tensor: StoredTensor) -> None:
    numbers = np.empty(tensor.shape, tensor.dtype)
    tensor.read_into(numbers)
    if not (numbers == 1).all():
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} must contain only ones, "
            "since the model does not have this scale"
        )


def _and_more(items: Sequence[object]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
