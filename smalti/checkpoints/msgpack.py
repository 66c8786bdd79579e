"""Flax's msgpack checkpoints (`flax_model.msgpack`), read without loading them.

The file is one msgpack value (https://github.com/msgpack/msgpack/blob/master/spec.md): nested maps from names to
tensors. A tensor is an extension value of type 1 (3 for a scalar) whose content is again msgpack: the array (shape,
type name, bytes). A tensor above 1 GiB is a map with the key `__msgpack_chunked_array__`, its shape, and its numbers
in flat chunks. Reading the headers and skipping the bytes gives the offset of every tensor; the msgpack library would
have to load the whole file.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from smalti.checkpoints.tensor import StoredTensor, check_extent
from smalti.errors import CheckpointError

CHUNKED = "__msgpack_chunked_array__"
TENSOR_TYPES = (1, 3)
MAX_DEPTH = 32
MAX_NAME_LENGTH = 1024

# Kind of a value by its first byte, with the struct format of the length or number that follows.
KINDS: dict[int, tuple[str, str]] = {
    0xC4: ("bytes", ">B"),
    0xC5: ("bytes", ">H"),
    0xC6: ("bytes", ">I"),
    0xC7: ("extension", ">B"),
    0xC8: ("extension", ">H"),
    0xC9: ("extension", ">I"),
    0xCC: ("number", ">B"),
    0xCD: ("number", ">H"),
    0xCE: ("number", ">I"),
    0xCF: ("number", ">Q"),
    0xD9: ("text", ">B"),
    0xDA: ("text", ">H"),
    0xDB: ("text", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}
# Values whose length or number is in the first byte itself: (first byte from, to, kind, value of the first).
SHORT_KINDS = (
    (0x00, 0x7F, "number", 0),
    (0x80, 0x8F, "map", 0),
    (0x90, 0x9F, "array", 0),
    (0xA0, 0xBF, "text", 0),
    (0xC2, 0xC3, "truth", 0),
)
# Lengths of extensions of fixed length, by their first byte.
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def index_msgpack(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a Flax checkpoint by their names, joined with "/".

    Raises:
        CheckpointError: the file is damaged, truncated, or contains something other than tensors.
    """
    with path.open("rb") as file:
        return _Walker(path, file, path.stat().st_size).tensors()


class _Walker:
    """One pass over the headers of a file.

    For messages, `keys` is the path of the current value, and `last` the name of the last complete tensor.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.keys: list[str] = []
        self.last = ""

    def tensors(self) -> dict[str, StoredTensor]:
        root = self.value()
        if not isinstance(root, dict):
            self.damaged("expected a map from names to tensors")
        if self.file.tell() != self.size:
            self.damaged(f"{self.size - self.file.tell()} bytes follow the last tensor")
        found: dict[str, StoredTensor] = {}
        self.flatten(root, found)
        return found

    def flatten(self, node: dict[str, Any], found: dict[str, StoredTensor]) -> None:
        for key, child in node.items():
            self.keys.append(key)
            if isinstance(child, dict):
                self.flatten(child, found)
            elif isinstance(child, StoredTensor):
                found[child.name] = child
            else:
                self.damaged(f"{'/'.join(self.keys)} is not a tensor")
            self.keys.pop()

    def value(self) -> dict[str, Any] | StoredTensor | int:
        kind, length = self.header()
        if kind == "map":
            return self.map(length)
        if kind == "extension":
            return self.tensor(length)
        if kind in ("number", "truth"):
            return length
        return self.damaged(f"expected a tensor, found {kind}")

    def map(self, length: int) -> dict[str, Any] | StoredTensor:
        if len(self.keys) == MAX_DEPTH:
            self.damaged(f"maps are nested more than {MAX_DEPTH} deep")
        entries: dict[str, Any] = {}
        for _ in range(length):
            key = self.text()
            if key in entries:
                self.damaged(f"the name {key} occurs twice")
            self.keys.append(key)
            entries[key] = self.value()
            self.keys.pop()
        return self.chunked(entries) if CHUNKED in entries else entries

    def chunked(self, entries: dict[str, Any]) -> StoredTensor:
        """Joins the chunks of a tensor above 1 GiB."""
        try:
            shape = tuple(entries["shape"][str(axis)] for axis in range(len(entries["shape"])))
            chunks = [entries["chunks"][str(index)] for index in range(len(entries["chunks"]))]
            segments = tuple(segment for chunk in chunks for segment in chunk.segments)
            (type_name,) = {chunk.type_name for chunk in chunks}
            whole = StoredTensor(self.path, "/".join(self.keys), type_name, shape, segments)
            return check_extent(whole, self.size)
        except (KeyError, TypeError, AttributeError, ValueError):
            return self.damaged("expected a tensor in chunks")

    def tensor(self, length: int) -> StoredTensor:
        code = self.read(1)[0]
        if code not in TENSOR_TYPES:
            self.damaged(f"expected a tensor, found an extension of type {code}")
        end = self.file.tell() + length
        if self.header() != ("array", 3):
            self.damaged("expected (shape, type, bytes)")
        kind, axes = self.header()
        if kind != "array" or axes > MAX_DEPTH:
            self.damaged("expected a shape")
        shape = tuple(self.number() for _ in range(axes))
        type_name = self.text()
        kind, size = self.header()
        offset = self.file.tell()
        if kind != "bytes" or offset + size != end:
            self.damaged("the length of a tensor does not match its bytes")
        stored = StoredTensor(self.path, "/".join(self.keys), type_name, shape, ((offset, size),))
        self.file.seek(end)
        self.last = stored.name
        return check_extent(stored, self.size)

    def number(self) -> int:
        kind, value = self.header()
        return value if kind == "number" else self.damaged(f"expected a number, found {kind}")

    def text(self) -> str:
        kind, length = self.header()
        if kind not in ("text", "bytes") or length > MAX_NAME_LENGTH:
            self.damaged(f"expected a name, found {kind}")
        try:
            return self.read(length).decode()
        except UnicodeDecodeError:
            return self.damaged("a name is not valid UTF-8")

    def header(self) -> tuple[str, int]:
        """Returns the kind of the next value, with its length, or with the value of a number."""
        first = self.read(1)[0]
        for lowest, highest, kind, value in SHORT_KINDS:
            if lowest <= first <= highest:
                return kind, first - lowest + value
        if first in FIXED_EXTENSIONS:
            return "extension", FIXED_EXTENSIONS[first]
        if first not in KINDS:
            self.damaged(f"expected a tensor, found byte 0x{first:02x}")
        kind, form = KINDS[first]
        (value,) = struct.unpack(form, self.read(struct.calcsize(form)))
        return kind, value

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) != size:
            where = f"after tensor {self.last}" if self.last else "before its first tensor"
            raise CheckpointError(f"{self.path}: truncated {where}, at byte {self.size}; copy it again")
        return content

    def damaged(self, problem: str) -> NoReturn:
        where = f" in {'/'.join(self.keys)}" if self.keys else ""
        raise CheckpointError(
            f"{self.path}: damaged at byte {self.file.tell()}{where}: {problem}; copy it again"
        )
