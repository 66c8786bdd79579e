"""Pictures of a shard's prompts between the stages: a tar with the pictures of each prompt, in order."""

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field, ValidationError

from smalti.batches import BatchPrompt, add_member
from smalti.errors import DamagedObjectError
from smalti.foreign_text import reason_of
from smalti.parameters import CandidateIndex
from smalti.shards.readings import Reading, check_reading
from smalti.validation import Strict, first_problem


@dataclass(frozen=True, kw_only=True)
class CandidatePicture:
    """A picture of a candidate."""

    candidate: int
    content: bytes
    """The PNG file, with its record."""
    score: float | None = None
    """The ranker's score; None before it has looked at the picture."""

    def image(self) -> Image.Image:
        """Returns the picture in RGB; raises `OSError` if the file is not a PNG."""
        with Image.open(io.BytesIO(self.content), formats=("PNG",)) as opened:
            return opened.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class DrawnPrompt:
    """A prompt with the pictures that were drawn for it."""

    prompt: BatchPrompt
    reading: Reading
    pictures: tuple[CandidatePicture, ...] = ()
    """Those of all candidates, or from the ranker on the chosen ones, best first; none if it has a problem."""

    def failed(self, problem: str) -> "DrawnPrompt":
        """Returns the prompt after a stage has failed over it."""
        return DrawnPrompt(prompt=self.prompt, reading=self.reading.failed(problem))


class _PictureEntry(Strict):
    candidate: CandidateIndex
    score: float | None = Field(default=None, exclude_if=lambda given: given is None)
    size: Annotated[int, Field(ge=1)]


class _PromptEntry(Strict):
    """What precedes the pictures of a prompt."""

    reading: Reading
    pictures: tuple[_PictureEntry, ...]


def write_pictures(path: Path, drawn: Iterable[DrawnPrompt]) -> None:
    """Writes prompts with their pictures to a file; equal prompts give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for each in drawn:
            entry = _PromptEntry(
                reading=each.reading,
                pictures=tuple(
                    _PictureEntry(candidate=picture.candidate, score=picture.score, size=len(picture.content))
                    for picture in each.pictures
                ),
            )
            add_member(tar, f"{each.prompt.key}.json", entry.model_dump_json().encode())
            for picture in each.pictures:
                add_member(tar, f"{each.prompt.key}-{picture.candidate}.png", picture.content)


def read_pictures(name: str, path: Path, prompts: Sequence[BatchPrompt]) -> Iterator[DrawnPrompt]:
    """Yields the prompts of a file with their pictures, those of one prompt at a time.

    Args:
        name: what errors call the file.
        path: the file.
        prompts: the prompts of the shard.

    Raises:
        DamagedObjectError: it is not a file of `write_pictures` with these prompts.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for prompt in prompts:
                entry = _PromptEntry.model_validate_json(_read(name, tar, f"{prompt.key}.json"))
                check_reading(name, entry.reading, prompt)
                yield DrawnPrompt(
                    prompt=prompt,
                    reading=entry.reading,
                    pictures=tuple(
                        CandidatePicture(
                            candidate=each.candidate,
                            content=_read(name, tar, f"{prompt.key}-{each.candidate}.png"),
                            score=each.score,
                        )
                        for each in entry.pictures
                    ),
                )
            if tar.next() is not None:
                raise DamagedObjectError(name, "has more than the prompts of the shard")
    except tarfile.TarError as error:
        raise DamagedObjectError(name, reason_of(error)) from None
    except ValidationError as error:
        raise DamagedObjectError(name, str(first_problem(error))) from None


def _read(name: str, tar: tarfile.TarFile, wanted: str) -> bytes:
    member = tar.next()
    file = None if member is None or member.name != wanted else tar.extractfile(member)
    if file is None:
        raise DamagedObjectError(name, f"has {member.name if member else 'nothing'} instead of {wanted}")
    return file.read()
