"""Loading weights from every format they come in, and saving them as `model.safetensors`.

A checkpoint is opened by its headers alone: the name, shape and type of every tensor are held against what
the configuration asks for before any weight is read. Then each tensor is read from its place in the file
straight into its array, so that loading takes little more memory than the weights. No code of a file is ever
run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smalti.checkpoints.msgpack import index_msgpack
from smalti.checkpoints.names import DALLEBART_LAYOUT, VQGAN_LAYOUT, Axes, Layout, Shape, Source, Spelling
from smalti.checkpoints.safetensors import index_safetensors, write_safetensors
from smalti.checkpoints.tensor import StoredTensor
from smalti.checkpoints.torch import index_torch
from smalti.errors import CheckpointError, ModelError

__all__ = [
    "DALLEBART_LAYOUT",
    "VQGAN_LAYOUT",
    "Checkpoint",
    "Layout",
    "has_optional_part",
    "load_parameters",
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
        folder: the folder that holds them, or a file that holds all of them.
        expected: the shape of every parameter by its name, layers stacked on axis 0.
        layout: the formats to look for: `DALLEBART_LAYOUT` or `VQGAN_LAYOUT`.
        select: tells of a name whether the tensor is to be read; a file with none of them need not be there.

    Returns:
        The selected tensors by their names, in the type the file has: float32, float16 or bfloat16. What the
        layout calls optional is left out where the file does not have it.

    Raises:
        ModelError: there is no such folder, no weights in it, or more than one file they may be in.
        CheckpointError: a file is damaged, cut short, or does not fit what is expected; names the tensor.
    """
    checkpoint = open_checkpoint(folder, expected, layout, select=select)
    return {name: checkpoint.read(name) for name in checkpoint}


def save_parameters(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `model.safetensors` into a folder: the whole file, or, when it fails or is stopped, none of it.

    Raises:
        CheckpointError: a tensor holds something other than float32, float16 or bfloat16.
    """
    sizes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(Path(folder) / WEIGHTS_FILE, sizes, tensors.__getitem__)


@dataclass(frozen=True)
class Part:
    """Where one of our tensors comes from.

    Attributes:
        shape: its shape.
        pieces: the tensor in the file, or those of its layers in order.
        stacked: whether the pieces are layers, to be stacked on axis 0.
        axes: the axis of a piece that each axis of ours (of its layer) is; None for the same order.
    """

    shape: Shape
    pieces: tuple[StoredTensor, ...]
    stacked: bool
    axes: Axes | None

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers, which is the same in all pieces."""
        return self.pieces[0].dtype


class Checkpoint(Mapping[str, Part]):
    """A network's weights in their files: checked by the headers, not yet read."""

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
        """The files that hold them."""
        return {piece.path for part in self._parts.values() for piece in part.pieces}

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
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
        """Writes `model.safetensors` into a folder, with one tensor in memory at a time; whole or not at all.

        Raises:
            CheckpointError: as `read`.
        """
        sizes = {name: (part.dtype, part.shape) for name, part in self._parts.items()}
        write_safetensors(folder / WEIGHTS_FILE, sizes, self.read)


def open_checkpoint(
    folder: Path, expected: Mapping[str, Shape], layout: Layout, *, select: Selector = every
) -> Checkpoint:
    """Finds a network's weights in a folder and checks them by their headers; see `load_parameters`."""
    folder = Path(folder)
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder; it should hold the weights of a {layout.network} model")
    parts: dict[str, Part] = {}
    for source, path in _find_files(folder, layout, [name for name in expected if select(name)]):
        theirs = {name: shape for name, shape in expected.items() if name.startswith(source.prefixes)}
        parts |= _fit(_index(path, source), path, theirs, source, layout)
    return Checkpoint({name: parts[name] for name in expected if name in parts and select(name)})


def has_optional_part(folder: Path, layout: Layout) -> bool:
    """Says whether a network's weights hold what its layout calls optional; reads no more than a file's header.

    Raises:
        ModelError: there are no weights, or their file cannot be read.
    """
    prefix = layout.optional[0]
    names = (name for source, path in _find_files(folder, layout, [prefix]) for name in _index(path, source))
    # torch's names have dots where ours have slashes.
    return any(name.replace(".", "/").startswith(prefix) for name in names)


def _find_files(folder: Path, layout: Layout, wanted: list[str]) -> list[tuple[Source, Path]]:
    """Returns the files of the first format that is there, of those that hold something wanted."""
    for sources in layout.formats:
        found = {source: source.find(folder) for source in sources}
        if not any(found.values()):
            continue
        for paths in found.values():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise ModelError(f"{folder}: {names} are both there; leave only that of the model you mean")
        needed = [source for source in sources if any(name.startswith(source.prefixes) for name in wanted)]
        for source in needed:
            if not found[source]:
                others = ", ".join(path.name for paths in found.values() for path in paths)
                raise ModelError(f"{folder}: {' or '.join(source.file_names)} is missing beside {others}")
        return [(source, found[source][0]) for source in needed]
    choices = (" with ".join(" or ".join(source.file_names) for source in files) for files in layout.formats)
    problem = "no weights" if folder.is_dir() else "not one of the files of weights"
    raise ModelError(f"{folder}: {problem} of a {layout.network} model; looked for {'; '.join(choices)}")


def _index(path: Path, source: Source) -> dict[str, StoredTensor]:
    """Reads the headers of a file."""
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(
                    f"{path}: a Git LFS pointer, not the weights; `git lfs pull` fetches them"
                )
        return READERS[source.kind](path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def _fit(
    found: Mapping[str, StoredTensor],
    path: Path,
    expected: Mapping[str, Shape],
    source: Source,
    layout: Layout,
) -> dict[str, Part]:
    """Finds each expected tensor among those of a file, and refuses what does not fit."""
    plans = [(table, table.spell(expected)) for table in source.tables]
    # Of a file that keeps its layers apart hardly a name is that of a stacked one, and the other way round.
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
        parts[name] = Part(expected[name], pieces, spelling.stacked, spelling.axes)
    for tensor in neutral:
        _refuse_other_numbers_than_one(tensor)
    return parts


def _shapes(plan: Mapping[str, Spelling]) -> dict[str, Shape]:
    """Returns the shapes that the tensors of a file should have, by their names in it."""
    return {their_name: spelling.shape for spelling in plan.values() for their_name in spelling.names}


def _refuse_missing(names: list[str], path: Path, shapes: Mapping[str, Shape]) -> None:
    if names:
        raise CheckpointError(
            f"{path}: tensor {names[0]} of shape {shapes[names[0]]} is missing{_and_more(names)}; "
            "the model of config.json has it"
        )


def _refuse_unexpected(tensors: list[StoredTensor]) -> None:
    if tensors:
        first = tensors[0]
        raise CheckpointError(
            f"{first.path}: tensor {first.name} of shape {first.shape} is unexpected{_and_more(tensors)}; "
            "the model of config.json has none of that name"
        )


def _refuse_other_sizes(pieces: Sequence[StoredTensor], shape: Shape) -> None:
    for piece in pieces:
        if piece.shape != shape:
            raise CheckpointError(
                f"{piece.path}: tensor {piece.name} has the shape {piece.shape}, config.json asks for {shape}"
            )
        if piece.dtype != pieces[0].dtype:
            raise CheckpointError(
                f"{piece.path}: tensor {piece.name} holds {piece.type_name}, "
                f"expected {pieces[0].type_name} as in {pieces[0].name}"
            )


def _refuse_other_numbers_than_one(tensor: StoredTensor) -> None:
    numbers = np.empty(tensor.shape, tensor.dtype)
    tensor.read_into(numbers)
    if not (numbers == 1).all():
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} is a scale that the model does not have; "
            "expected ones, found other numbers"
        )


def _and_more(items: Sequence[object]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
