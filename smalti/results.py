"""The JSON files of a job in the object store: the scores of a chunk, and the result of the job."""

import base64
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

import numpy as np
from jaxtyping import Float
from pydantic import Field, StringConstraints, ValidationError

from smalti.errors import DamagedObjectError
from smalti.messages import MAX_GIVEN_TOKENS, MAX_IN_CHUNK, CandidateIndex, Prompt, ShortText
from smalti.parameters import Diversity, Flag, SamplingParameters, SecondPass, Seed
from smalti.selection import FEATURE_TYPE
from smalti.storage import Key, ObjectRef, Sha256
from smalti.validation import Strict, first_problem

Pixels = Annotated[int, Field(ge=1, le=2**20)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
MAX_FEATURES_LENGTH: Final = 2**16
"""Characters of packed features."""


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
    wording: Prompt | None = None
    """What was encoded for the candidate; None in a job whose candidates have no wordings of their own."""


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


class OutputsFile(_JsonFile):
    """`outputs/<work>.json`: the objects that a stage has written, by whoever was first."""

    objects: Annotated[tuple[ObjectRef, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]


class RankedPicture(ScoredPicture):
    """What the ranker finds out about the picture of a candidate."""

    features: Annotated[str, StringConstraints(max_length=MAX_FEATURES_LENGTH)] | None = None
    """What the picture looks like, from `pack_features`; None in a job that chooses by score alone."""


class ScoresFile(_JsonFile):
    """`scores/<chunk>.json`: the scores of a chunk."""

    pictures: Annotated[tuple[RankedPicture, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]


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
    vary: Flag = False
    """Whether candidates have wordings of their own."""
    diversity: Diversity = 0.0
    """Weight of difference from each other in the selection."""
    second_pass: SecondPass | None = None
    """What was done to the selected pictures after ranking; None if nothing was."""
    refiner: ShortText | None = None
    """Revision of the refiner; None if no refiner was used."""
    pictures: tuple[ResultPicture, ...]
    """The selected pictures, best first."""


def pack_features(features: Float[np.ndarray, " features"]) -> str:
    """Returns the features of a picture as text: base64 of float16, as they are compared."""
    return base64.b64encode(features.astype(FEATURE_TYPE).tobytes()).decode("ascii")


def unpack_features(key: str, texts: Sequence[str | None]) -> Float[np.ndarray, "pictures features"]:
    """Returns the features of pictures.

    Args:
        key: the object that they were read from.
        texts: the features of each picture, from `pack_features`.

    Raises:
        DamagedObjectError: some are missing, are no numbers, or have another length.
    """
    try:
        rows = [
            np.frombuffer(base64.b64decode(text or "", validate=True), FEATURE_TYPE).astype(np.float32)
            for text in texts
        ]
        features = np.stack(rows)
    except ValueError as error:
        raise DamagedObjectError(key, f"features: {error}") from None
    if not features.size or not np.isfinite(features).all():
        raise DamagedObjectError(key, "features: missing, or not finite")
    return features
