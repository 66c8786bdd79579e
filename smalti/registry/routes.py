"""The keys by which work finds the workers that can do it: each identifies the files that a stage depends on.

Models that share a VQGAN or a CLIP have the same key for its stage, so that one worker serves all of them.
"""

from pathlib import PurePosixPath
from typing import Any

from smalti.messages import KEY_LENGTH, RouteKey, Stage
from smalti.registry.folder import ModelFolder, digest_of
from smalti.registry.manifest import ClipFolder
from smalti.text.vocabulary import KNOWN_WORDS_FILE

_DIGEST_PREFIX = "sha256:"
_CONFIG = "config.json"


def route_keys(folder: ModelFolder) -> dict[Stage, RouteKey]:
    """Returns the keys of a model by stage.

    The keys of the encoder and the generator follow from the model's revision. The decoder's follows from the files of
    the VQGAN, the ranker's from those of CLIP, and the refiner's from those of the refiner, of the VQGAN, and from the
    configuration of the transformer, whose encodings it reads. Decoder and ranker also depend on the words that the
    model knows: with `vary`, these are in the wordings of the candidates.
    """
    parts = folder.manifest.parts
    words = folder.manifest.files.get(KNOWN_WORDS_FILE)
    known = words.sha256 if words else None
    vqgan = _files(folder, parts.vqgan)
    clip: Any = parts.clip.model_dump()
    if isinstance(parts.clip, ClipFolder):
        clip = _files(folder, parts.clip.folder)
    refiner = None
    if parts.refiner is not None:
        transformer = folder.manifest.files.get(str(PurePosixPath(parts.bart) / _CONFIG))
        refiner = [_files(folder, parts.refiner.folder), transformer.sha256 if transformer else None]
    revision = _key(folder.revision)
    return {
        Stage.ENCODE: revision,
        Stage.GENERATE: revision,
        Stage.DECODE: _key(digest_of({"vqgan": vqgan, "words": known})),
        Stage.RANK: _key(digest_of({"clip": clip, "words": known})),
        Stage.REFINE: _key(digest_of({"vqgan": vqgan, "refiner": refiner})),
    }


def _files(folder: ModelFolder, part: str) -> list[list[str]]:
    """Returns the files of a part by their paths in it, each with its SHA-256."""
    return [
        [str(PurePosixPath(path).relative_to(part)), record.sha256]
        for path, record in sorted(folder.manifest.files.items())
        if PurePosixPath(path).is_relative_to(part)
    ]


def _key(digest: str) -> RouteKey:
    return digest.removeprefix(_DIGEST_PREFIX)[:KEY_LENGTH]
