"""The two revisions of the shipped model that are served, and the pictures that are expected of each."""

import shutil
import threading
from pathlib import Path
from typing import Final

from faults.accounting import Submission
from smalti.checkpoints.loading import load_tensors, save_parameters
from smalti.parameters import SecondPass
from smalti.pictures import png_bytes
from smalti.pipeline import Pipeline
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.storage.store import digest

SLOTS: Final = 4
CHANGE: Final = 1.03
"""Factor for the weights of the next revision: other pictures, of the same things."""


def shipped() -> ModelFolder:
    """Returns the model that the images contain."""
    return library.find(None)


def make_next_revision(path: Path) -> ModelFolder:
    """Writes a revision of the shipped model that differs in the weights of the text encoder, and returns it."""
    first = shipped()
    shutil.copytree(first.path, path)
    (path / "model.json").unlink()
    bart = path / "bart"
    tensors = load_tensors(bart / "model.safetensors")
    name = next(each for each in sorted(tensors) if "encoder/" in each and each.endswith("kernel"))
    tensors[name] = (tensors[name] * CHANGE).astype(tensors[name].dtype)
    save_parameters(bart, tensors)
    made = ModelFolder.create(
        path,
        name=first.name,
        licence=first.manifest.licence,
        description=first.manifest.description,
        sampling=first.sampling,
        defaults=first.defaults,
    )
    for each in (path, *path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)  # Pods read it as another user.
    return made


class Expected:
    """The pictures of a revision: those of the stages in one process, without queue, store or services."""

    def __init__(self, folder: ModelFolder) -> None:
        """Loads nothing yet."""
        self._folder = folder
        self._pipeline: Pipeline | None = None
        self._known: dict[tuple[str, int, int, SecondPass | None], dict[int, str]] = {}
        self._lock = threading.Lock()

    def sha256(
        self, prompt: str, seed: int, candidate: int, of: int, second_pass: SecondPass | None = None
    ) -> str:
        """Returns the checksum of the file of a picture; takes what `faults.reference.Reference.sha256` does."""
        key = prompt, seed, of, second_pass
        with self._lock:
            if key not in self._known:
                self._known[key] = self._draw(*key)
            return self._known[key][candidate]

    def repacked_sha256(self, prompt: str, seed: int, candidate: int, of: int) -> str:
        """Returns the same: there is no other decoder."""
        return self.sha256(prompt, seed, candidate, of)

    def close(self) -> None:
        """Closes the pipeline."""
        if self._pipeline is not None:
            self._pipeline.close()

    def _draw(self, prompt: str, seed: int, of: int, second_pass: SecondPass | None) -> dict[int, str]:
        if self._pipeline is None:
            self._pipeline = Pipeline.load(self._folder.path, slots=SLOTS)
        pictures = self._pipeline.generate(prompt, of, of, seed)
        if second_pass is not None:
            pictures = self._pipeline.refine(pictures, second_pass)
        # The services' files do not say a score, which is known only after they are written.
        return {
            each.candidate: digest(png_bytes(each.image, each.drawing.model_copy(update={"score": None})))
            for each in pictures
        }


def revision_of(submission: Submission) -> str:
    """Returns the revision with which a job was drawn; empty for one that has not ended."""
    return submission.end.parameters.model.revision if submission.end else ""
