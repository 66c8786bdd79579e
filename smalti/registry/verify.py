"""Finding what is wrong with a model: changed files, and parts that do not fit together."""

from collections.abc import Iterator

from smalti.errors import ModelError
from smalti.registry.folder import ModelFolder, list_files, refiner_revision_of, revision_of, sha256_of
from smalti.registry.manifest import MANIFEST_FILE


def find_problems(folder: ModelFolder) -> list[str]:
    """Reads every file of a model and returns what is wrong, one line each; empty if the model is intact.

    Finds files that are missing, changed or not listed, a revision that does not match the files, weights that
    do not fit their configuration, and parts that do not fit together.

    Raises:
        ModelError: JAX or the tokenizers library is not installed.
    """
    # Only this needs JAX: an installation without it can still list, open and pull models.
    try:
        from smalti.registry.parts import find_part_problems
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{folder.path}: {error.name} is needed to check the weights; pip install 'smalti[local]'"
        ) from error
    return [*find_file_problems(folder), *find_part_problems(folder)]


def find_file_problems(folder: ModelFolder) -> Iterator[str]:
    """Reads every file of a model and yields what differs from its `model.json`, one line each; needs no JAX."""
    recorded, present = folder.manifest.files, set(list_files(folder.path))
    for file in recorded:
        if file not in present:
            yield f"{folder.path / file}: missing"
    for file in sorted(present - recorded.keys()):
        yield f"{folder.path / file}: not listed in {MANIFEST_FILE}"
    for file in sorted(present & recorded.keys()):
        path, record = folder.path / file, recorded[file]
        # The size is known at once; only a file of the right size has to be read.
        if (size := path.stat().st_size) != record.size:
            yield f"{path}: changed: {size} bytes, but {MANIFEST_FILE} says {record.size}"
        elif (digest := sha256_of(path)) != record.sha256:
            yield f"{path}: changed: SHA-256 is {digest}, but {MANIFEST_FILE} says {record.sha256}"
    digests = {file: record.sha256 for file, record in recorded.items()}
    refiner = folder.manifest.parts.refiner
    clip = folder.manifest.parts.clip.model_dump()
    if revision_of(digests, clip, refiner.folder if refiner else None) != folder.revision:
        yield f"{folder.path / MANIFEST_FILE}: revision: does not match the listed files"
    if refiner and refiner_revision_of(digests, refiner.folder) != refiner.revision:
        yield f"{folder.path / MANIFEST_FILE}: parts.refiner.revision: does not match the listed files"
