"""A folder of programs that were compiled ahead, with a list of what they are and what they were made for.

Loading a program is running code. So a folder is trusted only if it is the user's own and nobody else can write to it,
or if the settings name the SHA-256 of its list, which has the SHA-256 of every program.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Final, Self

import jax
from pydantic import BaseModel, ConfigDict, ValidationError

from smalti.compilation.ahead import Compiled
from smalti.compilation.folder import MAX_FILE_BYTES, PrivateFolder
from smalti.compilation.key import Call, call_key, describe, difference
from smalti.compilation.serialized import UnfitProgramError, pack, unpack
from smalti.compilation.target import portable_target

MANIFEST: Final = "programs.json"
FORMAT: Final = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProgramEntry(_Part):
    """One program of the list."""

    name: str
    file: str
    sha256: str
    """SHA-256 of the file."""
    size: int
    call: dict[str, Any]
    """What it is called with."""
    devices: tuple[int, ...]
    """The ids of its devices."""
    memory: dict[str, int] | None
    """Bytes of each device that it needs."""
    seconds: float
    """Time for compiling it."""


class ShapesEntry(_Part):
    """The shapes of a network's parameters, which are found by tracing."""

    name: str
    call: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


class Manifest(_Part):
    """The list."""

    format: int
    about: dict[str, Any]
    """What was asked for: the model, the slots and so on."""
    made_for: dict[str, Any]
    """What must be the same where they are loaded."""
    programs: list[ProgramEntry]
    shapes: list[ShapesEntry]


class BundleWriter:
    """Writes the programs into a folder as they are compiled, and the list at the end; thread-safe."""

    def __init__(self, folder: Path, device: jax.Device) -> None:
        """Takes an empty folder, and one of the devices to compile for."""
        self._folder = folder
        self._device = device
        self._lock = Lock()
        self.programs: list[ProgramEntry] = []
        self._shapes: list[ShapesEntry] = []

    def keep(self, made: Compiled) -> None:
        """Writes a program.

        Raises:
            UnfitProgramError: JAX cannot write it.
            OSError: the file cannot be written.
        """
        content = pack(made.compiled, made.tree)
        entry = ProgramEntry(
            name=made.name,
            file=f"{made.name}-{call_key(made.name, made.call)}.program",
            sha256=sha256(content).hexdigest(),
            size=len(content),
            call=made.call,
            devices=made.devices,
            memory=None if made.memory is None else dict(vars(made.memory)),
            seconds=round(made.seconds, 2),
        )
        (self._folder / entry.file).write_bytes(content)
        (self._folder / entry.file).chmod(0o644)
        with self._lock:
            self.programs.append(entry)

    def keep_shapes(self, name: str, config: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        """Keeps the shapes of a network's parameters."""
        with self._lock:
            self._shapes.append(ShapesEntry(name=name, call={"config": describe(config)}, shapes=shapes))

    def finish(self, about: dict[str, Any]) -> str:
        """Writes the list; returns its SHA-256."""
        manifest = Manifest(
            format=FORMAT,
            about=about,
            made_for=portable_target(self._device),
            programs=sorted(self.programs, key=lambda each: each.file),
            shapes=sorted(self._shapes, key=lambda each: (each.name, str(each.call))),
        )
        content = manifest.model_dump_json(indent=1).encode()
        (self._folder / MANIFEST).write_bytes(content)
        (self._folder / MANIFEST).chmod(0o644)
        self._folder.chmod(0o755)
        return sha256(content).hexdigest()


class Bundle:
    """A folder of programs that are trusted and were made for this machine."""

    def __init__(self, path: Path, manifest: Manifest, read: Callable[[str], bytes]) -> None:
        """Takes what `open` has checked."""
        self.path = path
        self.manifest = manifest
        self._read = read
        self._by_key = {call_key(each.name, each.call): each for each in manifest.programs}

    @classmethod
    def open(cls, path: Path, digest: str = "", *, trust_parents: bool = False) -> Self:
        """Opens a folder.

        Args:
            path: the folder.
            digest: SHA-256 of its list, which makes it trusted wherever it comes from; empty if it must be the user's.
            trust_parents: whether nobody else reaches the folders above it, whatever their permissions say.

        Raises:
            UnfitProgramError: it is not trusted, or was not made for this machine; says why.
        """
        try:
            if digest:
                read = _reader(path)
            else:
                path.stat()  # Opening would make it.
                read = PrivateFolder.open(path, trust_parents=trust_parents).read
            content = read(MANIFEST)
        except OSError as error:
            named = error.filename or MANIFEST
            problem = f"{named}: {error.strerror}" if error.strerror else str(error)
            raise UnfitProgramError(problem) from error
        found = sha256(content).hexdigest()
        if digest and found != digest.lower().removeprefix("sha256:"):
            raise UnfitProgramError(f"{MANIFEST} has the SHA-256 {found}, not the one that the settings name")
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise UnfitProgramError(f"{MANIFEST} is not a list of programs of this version") from error
        if manifest.format != FORMAT:
            raise UnfitProgramError(f"{MANIFEST} has format {manifest.format}; this version reads {FORMAT}")
        if problem := _unlike(manifest.made_for, portable_target(jax.devices()[0])):
            raise UnfitProgramError(problem)
        return cls(path, manifest, read)

    def load(self, name: str, call: Call) -> tuple[Callable[..., Sequence[Any]], Any]:
        """Returns a program and the tree of its results.

        Raises:
            UnfitProgramError: the folder has none for this call, it was changed, or it cannot be loaded; says why.
        """
        entry = self._by_key.get(call_key(name, call))
        if entry is None:
            raise UnfitProgramError(self._why_missing(name, call))
        try:
            content = self._read(entry.file)
        except OSError as error:
            raise UnfitProgramError(f"{entry.file}: {error.strerror or error}") from error
        if sha256(content).hexdigest() != entry.sha256:
            raise UnfitProgramError(f"{entry.file} is not the file of the list: its SHA-256 differs")
        # Runs whatever the file says, and is safe because it is trusted: see above.
        return unpack(content, entry.devices)

    def shapes(self, name: str, config: Any) -> dict[str, tuple[int, ...]] | None:
        """Returns the shapes of a network's parameters; None if the folder does not have them."""
        call = {"config": describe(config)}
        found = (each for each in self.manifest.shapes if (each.name, each.call) == (name, call))
        return next((dict(each.shapes) for each in found), None)

    def _why_missing(self, name: str, call: Call) -> str:
        others = [each for each in self.manifest.programs if each.name == name]
        if not others:
            return "the folder has no such program"
        # What differs in the fewest places was meant.
        return min((difference(each.call, call) for each in others), key=len)


def _reader(folder: Path) -> Callable[[str], bytes]:
    """Returns what reads the files of a folder whose content is checked by its SHA-256."""

    def read(name: str) -> bytes:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(0, "no such file", str(file))
        if file.stat().st_size > MAX_FILE_BYTES:
            raise OSError(f"{file} is larger than a program")
        return file.read_bytes()

    return read


_WORDS: Final = {
    "code": "they were made from other code of Smalti; make them again with this version",
    "processor": "they were made for another processor; make them on this one",
}


def _unlike(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Returns why programs that were made elsewhere cannot run here; empty if they can."""
    # The device before all that follows from it.
    for name in dict.fromkeys((*here, *there)):
        problem = difference(there.get(name), here.get(name), name)
        if problem:
            return _WORDS.get(name, f"they were made for another machine: {problem}")
    return ""
