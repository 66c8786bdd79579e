"""Pulling a model from the Hugging Face hub, or from the cache of what was pulled before."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from smalti.errors import InvalidInputError, ModelError
from smalti.registry.folder import ModelFolder
from smalti.registry.importing import (
    DEFAULT_CLIP,
    DEFAULT_VQGAN,
    TEXT_FILES,
    check_place,
    import_model,
    new_folder,
    refuse,
)
from smalti.registry.manifest import MANIFEST_FILE, read_manifest, write_manifest
from smalti.settings import settings

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "flax_model.msgpack"


class Hub:
    """The hub, or the cache of it."""

    def __init__(self, offline: bool, cache: Path | None) -> None:
        """Settles where files come from.

        Args:
            offline: from the cache alone.
            cache: the folder of the cache; None for the hub library's own.
        """
        self.offline = offline
        self.cache = cache

    def fetch(self, repository: str, revision: str | None, files: Iterable[str]) -> Path:
        """Returns a folder with those of the files that the repository has; it may hold others too.

        Raises:
            ModelError: the repository cannot be had; says why, and what to do.
        """
        try:
            folder = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(files),
                cache_dir=self.cache,
                local_files_only=self.offline,
                endpoint=settings().hub_endpoint,
            )
        except HFValidationError as error:
            raise InvalidInputError("repository", f"{repository!r} is not of the form owner/name") from error
        except GatedRepoError as error:
            raise ModelError(
                f"{repository}: access is granted on request; ask for it on the hub, then `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"{repository}: the hub has none of that name, or it is private; for this `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise ModelError(f"{repository}: it has no revision {revision}") from error
        except IncompleteSnapshotError as error:
            raise ModelError(f"{repository}: only a part of it is in the cache; {self._remedy()}") from error
        except LocalEntryNotFoundError as error:
            raise ModelError(f"{repository}: it is not in the cache; {self._remedy()}") from error
        except Exception as error:  # Whatever the network and the disk raise.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"{repository}: cannot be pulled from the hub ({reason})") from error
        return Path(folder)

    def _remedy(self) -> str:
        if self.offline or HF_HUB_OFFLINE:
            return "pull it once without offline mode"
        return "and the hub cannot be reached: check the network"


def pull_model(
    repository: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    vqgan: str = DEFAULT_VQGAN,
    clip: str | Path = DEFAULT_CLIP,
    licence: str | None = None,
    out: Path | None = None,
    offline: bool | None = None,
    cache: Path | None = None,
) -> ModelFolder:
    """Makes a model folder from a repository of the hub, whole or not at all.

    A repository that is a model folder, with `model.json`, is taken as it is, and verified. Of another one,
    the weights in the format of the original DALL·E mini, and the text tokenizer, are imported with a VQGAN
    and CLIP.

    Args:
        repository: "owner/name".
        name: the model's name; by default that of `model.json`, or that of the repository.
        revision: a branch, tag or commit of the repository.
        vqgan: the repository of the VQGAN, for an import.
        clip: as in `import_model`, for an import.
        licence: the model's licence, for an import; by default that of the repository's model card.
        out: the folder to make; by default one of this name among the user's models.
        offline: take everything from the cache; by default as the settings say.
        cache: the folder of the cache; by default as the settings say.

    Raises:
        ModelError: it cannot be had from the hub or the cache, or what is there is no model that can be used.
    """
    hub = Hub(settings().offline if offline is None else offline, cache or settings().hub_cache)
    start = hub.fetch(repository, revision, (MANIFEST_FILE, CARD_FILE))
    if (start / MANIFEST_FILE).is_file():
        return _take(hub, repository, revision, start, name, out)
    name = name or repository.rpartition("/")[2]
    out = check_place(name, out)
    licence = licence or _licence(start, repository)
    transformer = _originals(hub, repository, revision, TEXT_FILES)
    return import_model(
        name,
        licence=licence,
        bart=transformer,
        vqgan=_originals(hub, vqgan, None),
        clip=clip,
        out=out,
        source=f"https://huggingface.co/{repository}",
    )


def _originals(hub: Hub, repository: str, revision: str | None, others: tuple[str, ...] = ()) -> Path:
    folder = hub.fetch(repository, revision, (CONFIG_FILE, WEIGHTS_FILE, *others))
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"{repository}: holds neither a {MANIFEST_FILE} nor a {WEIGHTS_FILE}; it cannot be pulled"
        )
    return folder


def _take(
    hub: Hub, repository: str, revision: str | None, start: Path, name: str | None, out: Path | None
) -> ModelFolder:
    manifest = read_manifest(start)
    name = name or manifest.name
    out = check_place(name, out)
    # What it lists and no more: a name of it is not a pattern.
    snapshot = hub.fetch(repository, revision, [glob.escape(file) for file in manifest.files])
    with new_folder(out) as temporary:
        for file in manifest.files:
            if not (snapshot / file).is_file():
                raise ModelError(f"{repository}: {file} is missing, which its {MANIFEST_FILE} lists")
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            _link(snapshot / file, temporary / file)
        write_manifest(temporary, json.loads((start / MANIFEST_FILE).read_bytes()) | {"name": name})
        refuse(ModelFolder.open(temporary).verify())
    return ModelFolder.open(out)


def _link(source: Path, target: Path) -> None:
    """Puts a file of the cache into a model without a second copy of it, where the file system can."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _licence(snapshot: Path, repository: str) -> str:
    card = snapshot / CARD_FILE
    licence = None
    # What stands in a card is anybody's, and need not be what the library can parse.
    with contextlib.suppress(Exception):
        licence = ModelCard.load(card).data.license
    if not isinstance(licence, str):
        raise InvalidInputError("licence", f"{repository} does not say its own; read it up and give it")
    return licence
