"""The JSON files of a job in the object store: the scores of a chunk, and the result of the job."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from smalti.errors import DamagedObjectError
from smalti.messages import MAX_GIVEN_TOKENS, MAX_IN_CHUNK, CandidateIndex, Prompt, ShortText
from smalti.parameters import SamplingParameters, Seed
from smalti.storage import Key, Sha256
from smalti.validation import Strict, first_problem

Pixels = Annotated[int, Field(ge=1, le=2**20)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ScoredPicture(Strict):
    """The picture of a candidate and its score."""

    index: CandidateIndex
    score: float
    sha256: Sha256
    """SHA-256 of the file, in hexadecimal."""
    size: Annotated[int, Field(ge=1)]
    """Bytes of the file."""
    width: Pixels
    height: Pixels


class _JsonFile(Strict):
    """A JSON file in the object store."""

    version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """Returns the file; the same content gives the same bytes."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def parse(cls, key: str, content: bytes) -> Self:
        """Reads the file; raises `DamagedObjectError` if it is not valid."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DamagedObjectError(key, str(first_problem(error))) from None


class ScoresFile(_JsonFile):
    """`scores/<chunk>.json`: the scores of a chunk."""

    pictures: Annotated[tuple[ScoredPicture, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]


class ResultPicture(ScoredPicture):
    """A picture that was selected."""

    key: Key
    """Key of the file."""
    tokens: Annotated[tuple[Token, ...], Field(max_length=MAX_GIVEN_TOKENS)]
    """Image tokens of the picture, for jobs that continue from it."""


class ResultFile(_JsonFile):
    """`result.json`: the parameters of a job, and the selected pictures."""

    job: str
    prompt: Prompt
    model: ShortText
    revision: ShortText
    seed: Seed
    sampling: SamplingParameters
    candidates: int
    """Number of candidates from which the pictures were selected."""
    pictures: tuple[ResultPicture, ...]
    """The selected pictures, best first."""
