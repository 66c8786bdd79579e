"""What a job leaves in the object store as JSON: the scores of a chunk, and the result of the whole."""

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
    """A candidate's picture and what the ranker gave it."""

    index: CandidateIndex
    score: float
    sha256: Sha256
    """Of its file."""
    size: Annotated[int, Field(ge=1)]
    """Of its file, in bytes."""
    width: Pixels
    height: Pixels


class _ObjectOfJson(Strict):
    """What is an object of the store by itself."""

    version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """Writes the object; the same content gives the same bytes."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def parse(cls, key: str, content: bytes) -> Self:
        """Reads the object; raises `DamagedObjectError` when it is none of this kind."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DamagedObjectError(key, str(first_problem(error))) from None


class ScoresFile(_ObjectOfJson):
    """`scores/<chunk>.json`: all candidates of a chunk."""

    pictures: Annotated[tuple[ScoredPicture, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]


class ResultPicture(ScoredPicture):
    """A picture that won."""

    key: Key
    """Where its file is."""
    tokens: Annotated[tuple[Token, ...], Field(max_length=MAX_GIVEN_TOKENS)]
    """Its image tokens, for a job that draws on from it."""


class ResultFile(_ObjectOfJson):
    """`result.json`: how a job was drawn, and which pictures won."""

    job: str
    prompt: Prompt
    model: ShortText
    revision: ShortText
    seed: Seed
    sampling: SamplingParameters
    candidates: int
    """How many the pictures were chosen from."""
    pictures: tuple[ResultPicture, ...]
    """The best first."""
