"""Pulling models from the Hugging Face hub, or from the local cache of earlier downloads."""

import contextlib
import glob
import json
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
from smalti.files import link_or_copy
from smalti.outputs import whole_folder
from smalti.registry.folder import CARD_FILE, ModelFolder
from smalti.registry.importing import (
    DEFAULT_CLIP,
    DEFAULT_VQGAN,
    TEXT_FILES,
    choose_folder,
    import_model,
    raise_first,
)
from smalti.registry.manifest import MANIFEST_FILE, read_manifest, write_manifest
from smalti.registry.verify import find_problems
from smalti.settings import settings

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "flax_model.msgpack"


class Hub:
    """The Hugging Face hub and its local cache."""

    def __init__(self, offline: bool, cache: Path | None) -> None:
        """Chooses where files come from.

        Args:
            offline: use the cache only.
            cache: folder of the cache; None for the hub library's own.
        """
        self.offline = offline
        self.cache = cache

    def fetch(self, repository: str, revision: str | None, files: Iterable[str]) -> Path:
        """Downloads files of a repository and returns their folder, which may hold other files too.

        Args:
            repository: "owner/name".
            revision: a branch, tag or commit; None for the default branch.
            files: patterns of the files; those that the repository does not have are skipped.

        Raises:
            InvalidInputError: the name of the repository is malformed.
            ModelError: the repository is not available; says why, and the remedy.
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
            raise InvalidInputError("repository", f"{repository!r} must have the form owner/name") from error
        except GatedRepoError as error:
            raise ModelError(
                f"{repository}: access is restricted; request it on the hub, then run `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"{repository}: not found on the hub; if it is private, run `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise ModelError(
                f"{repository}: there is no revision {revision}; give a branch, tag or commit"
            ) from error
        except IncompleteSnapshotError as error:
            raise ModelError(f"{repository}: only partly in the cache; {self._remedy()}") from error
        except LocalEntryNotFoundError as error:
            raise ModelError(f"{repository}: not in the cache; {self._remedy()}") from error
        except Exception as error:  # The network and the disk may raise anything.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"{repository}: cannot be pulled from the hub ({reason})") from error
        return Path(folder)

    def _remedy(self) -> str:
        if self.offline or HF_HUB_OFFLINE:
            return "pull it once without offline mode"
        return "the hub cannot be reached either: check the network"


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
    """Makes a model folder from a repository of the hub, completely or not at all.

    A repository with a `model.json` is a model folder: it is copied and verified. From any other repository the
    weights in the format of the original DALL·E mini and the text tokenizer are imported, together with a VQGAN
    and a CLIP.

    Args:
        repository: "owner/name".
        name: name of the model; by default that in `model.json`, or that of the repository.
        revision: a branch, tag or commit of the repository.
        vqgan: repository of the VQGAN, for an import.
        clip: as in `import_model`, for an import.
        licence: licence of the model, for an import; by default that of the repository's model card.
        out: the folder to make; by default one with this name among the user's models.
        offline: use the cache only; by default the setting.
        cache: folder of the cache; by default the setting.

    Raises:
        InvalidInputError: the name of the model or the repository is invalid, no licence is known, or the folder cannot
            be used.
        ModelError: the repository is not available, or does not hold a usable model.
        SmaltiError: a file cannot be read or written.
    """
    hub = Hub(settings().offline if offline is None else offline, cache or settings().hub_cache)
    start = hub.fetch(repository, revision, (MANIFEST_FILE, CARD_FILE))
    if (start / MANIFEST_FILE).is_file():
        return _copy_model(hub, repository, revision, start, name, out)
    name = name or repository.rpartition("/")[2]
    out = choose_folder(name, out)
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
        raise ModelError(f"{repository}: cannot be pulled: it has neither {MANIFEST_FILE} nor {WEIGHTS_FILE}")
    return folder


def _copy_model(
    hub: Hub, repository: str, revision: str | None, start: Path, name: str | None, out: Path | None
) -> ModelFolder:
    manifest = read_manifest(start)
    name = name or manifest.name
    out = choose_folder(name, out)
    # Only the listed files; their names are not patterns.
    snapshot = hub.fetch(repository, revision, [glob.escape(file) for file in manifest.files])
    with whole_folder(out) as temporary:
        for file in manifest.files:
            if not (snapshot / file).is_file():
                raise ModelError(f"{repository}: {file} is missing, although {MANIFEST_FILE} lists it")
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(snapshot / file, temporary / file)
        write_manifest(temporary, json.loads((start / MANIFEST_FILE).read_bytes()) | {"name": name})
        raise_first(find_problems(ModelFolder.open(temporary)))
    return ModelFolder.open(out)


def _licence(snapshot: Path, repository: str) -> str:
    card = snapshot / CARD_FILE
    licence = None
    # Anybody can write a card; the library may fail to parse it.
    with contextlib.suppress(Exception):
        licence = ModelCard.load(card).data.license
    if not isinstance(licence, str):
        raise InvalidInputError(
            "licence", f"the model card of {repository} states none; look it up and give it"
        )
    return licence
