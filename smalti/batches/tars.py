"""The tar files of a batch: for each picture its file and its description, as `webdataset` reads them."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Final

from PIL import Image
from pydantic import Field, ValidationError, field_serializer

from smalti.batches.prompts import BatchPrompt, Line, PictureFormat, PictureRecord
from smalti.errors import DamagedObjectError
from smalti.foreign_text import reason_of
from smalti.parameters import CandidateIndex, SamplingParameters, SecondPass, Seed
from smalti.pictures import lossy_bytes
from smalti.storage import Sha256, digest
from smalti.validation import Strict, first_problem

WEBP_QUALITY: Final = 90
_RECORD: Final = "json"
_MODE: Final = 0o644


class TarRecord(Strict):
    """The description of a picture, `<key>.json` beside it: all that is needed to draw it again.

    All pictures of a batch have the same keys with values of the same types, so that libraries can infer columns from
    the first of them.
    """

    id: str
    row: Line
    prompt: str
    effective_prompt: str
    """The prompt in the model's own words; the prompt itself if the model reads it as it is."""
    wording: str
    """What was encoded for the candidate; without `vary` that is `effective_prompt`."""
    seed: Seed
    score: float
    candidate: CandidateIndex
    rank: Annotated[int, Field(ge=0)]
    """Its place among the pictures of the prompt; 0 is the best."""
    n: int
    candidates: int
    sampling: SamplingParameters
    vary: bool
    diversity: float
    second_pass: SecondPass | None = Field(default=None, exclude_if=lambda given: given is None)
    """The same for all prompts of a batch."""
    model: str
    revision: str
    sha256: Sha256
    """SHA-256 of the picture's file."""
    width: int
    height: int

    @field_serializer("sampling")
    def _every_value(self, sampling: SamplingParameters) -> dict[str, Any]:
        return sampling.every_value()

    def picture(self, key: str, size: int) -> PictureRecord:
        """Returns what the manifest says about the picture.

        Args:
            key: the name of its files, without an ending.
            size: bytes of its file.
        """
        return PictureRecord(
            key=key,
            candidate=self.candidate,
            score=self.score,
            sha256=self.sha256,
            size=size,
            width=self.width,
            height=self.height,
            wording=self.wording if self.vary else None,
        )


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture that was drawn for a prompt."""

    content: bytes
    """Its file."""
    candidate: int
    score: float
    width: int
    height: int
    wording: str | None = None
    """What was encoded for the candidate; None without `vary`."""


@dataclass(frozen=True, kw_only=True)
class TarPicture:
    """A picture as a tar has it."""

    key: str
    content: bytes
    """The picture's file."""
    record: TarRecord


def webp_bytes(image: Image.Image) -> bytes:
    """Returns the file of a picture, in RGB, for a batch in WebP; equal input gives equal bytes."""
    return lossy_bytes(image, "webp", WEBP_QUALITY)


class TarWriter(AbstractContextManager["TarWriter"]):
    """Writes the tar of a shard; the same pictures give the same bytes.

    The prompts are added in the order of their rows. If the block fails, the file is removed.
    """

    def __init__(self, path: Path, picture_format: PictureFormat, *, model: str, revision: str) -> None:
        """Creates the file, or replaces it.

        Args:
            path: the path of the file.
            picture_format: the format of all pictures.
            model: name of the model.
            revision: revision of the model.
        """
        self._path = path
        self._format = picture_format
        self._model, self._revision = model, revision
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.pictures = 0
        """Pictures that were written."""

    def add(
        self, prompt: BatchPrompt, pictures: Sequence[DrawnPicture], effective_prompt: str | None = None
    ) -> tuple[PictureRecord, ...]:
        """Writes the pictures of a prompt.

        Args:
            prompt: the prompt.
            pictures: its pictures, best first.
            effective_prompt: the prompt in the model's own words, if it differs.

        Returns:
            What the manifest says about the pictures.
        """
        records = []
        for rank, picture in enumerate(pictures):
            record = TarRecord(
                id=prompt.id,
                row=prompt.row,
                prompt=prompt.prompt,
                effective_prompt=effective_prompt or prompt.prompt,
                wording=picture.wording or effective_prompt or prompt.prompt,
                seed=prompt.seed,
                score=picture.score,
                candidate=picture.candidate,
                rank=rank,
                n=prompt.n,
                candidates=prompt.candidates,
                sampling=prompt.sampling,
                vary=prompt.vary,
                diversity=prompt.diversity,
                second_pass=prompt.second_pass,
                model=self._model,
                revision=self._revision,
                sha256=digest(picture.content),
                width=picture.width,
                height=picture.height,
            )
            key = f"{prompt.key}-{rank}"
            add_member(self._tar, f"{key}.{self._format.value}", picture.content)
            add_member(self._tar, f"{key}.{_RECORD}", record.model_dump_json().encode())
            records.append(record.picture(key, len(picture.content)))
        self.pictures += len(records)
        return tuple(records)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the file."""
        self._tar.close()
        if error is not None:
            self._path.unlink(missing_ok=True)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar, without times, owners and groups, which would differ between equal runs."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = _MODE
    tar.addfile(member, io.BytesIO(content))


def read_tar(name: str, file: BinaryIO) -> Iterator[TarPicture]:
    """Yields the pictures of a tar as a stream, in their order.

    Args:
        name: what errors call the file.
        file: the file at its beginning.

    Raises:
        DamagedObjectError: it is not a tar as `TarWriter` writes it.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            picture: tuple[str, bytes] | None = None
            for member in tar:
                key, ending = PurePosixPath(member.name).stem, PurePosixPath(member.name).suffix[1:]
                opened = tar.extractfile(member)
                content = b"" if opened is None else opened.read()
                if ending == _RECORD:
                    if picture is None or picture[0] != key:
                        raise DamagedObjectError(name, f"{key} has no picture")
                    yield TarPicture(
                        key=key, content=picture[1], record=TarRecord.model_validate_json(content)
                    )
                    picture = None
                elif picture is None:
                    picture = key, content
                else:
                    break
            if picture is not None:
                raise DamagedObjectError(name, f"{picture[0]} is without its description")
    except tarfile.TarError as error:
        raise DamagedObjectError(name, reason_of(error)) from None
    except ValidationError as error:
        raise DamagedObjectError(name, str(first_problem(error))) from None
