"""The keys of objects, which follow from the job alone."""

import hashlib
import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from smalti.errors import InvalidInputError
from smalti.validation import Strict

JOBS = "jobs/"
"""The prefix of the objects of all jobs."""
MAX_KEY_LENGTH = 512

JOB_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
JobId = Annotated[str, StringConstraints(pattern=f"^{JOB_PATTERN}$")]
"""Letters, digits, `-` and `_`, at most 64; the first is a letter or a digit."""

# No part begins with a dot: `..` is impossible, and the local store uses such names for its own files.
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(/{_PART})*")


def check_key(key: str) -> str:
    """Returns the key; raises `InvalidInputError` if it is invalid."""
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidInputError(
            "key",
            f"{key[:80]!r} must be names of letters, digits, '.', '_' and '-', separated by '/'",
        )
    return key


def _validated_key(key: str) -> str:
    try:
        return check_key(key)
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


Key = Annotated[str, AfterValidator(_validated_key)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ObjectRef(Strict):
    """A reference to an object with a certain content."""

    key: Key
    sha256: Sha256


class JobKeys:
    """The keys of one job."""

    def __init__(self, job: str) -> None:
        """Raises `InvalidInputError` for an invalid job id."""
        if not re.fullmatch(JOB_PATTERN, job):
            raise InvalidInputError(
                "job", f"{job[:80]!r} is not a job id: at most 64 letters, digits, '-' and '_'"
            )
        self.folder = f"{JOBS}{job}/"
        self.encoding = f"{self.folder}encoding.safetensors"
        self.encodings = f"{self.folder}encodings/"
        """The prefix of the encodings of a job whose candidates have wordings of their own."""
        self.result = f"{self.folder}result.json"
        self.cancelled = f"{self.folder}cancelled.json"
        self.poison_records = f"{self.folder}suspects/"
        """The prefix of the records of crashes over the job."""

    def encoding_of(self, wording: str) -> str:
        """Returns the key of the encoding of one wording; equal wordings of a job share it."""
        return f"{self.encodings}{hashlib.sha256(wording.encode()).hexdigest()[:32]}.safetensors"

    def tokens(self, chunk: int) -> str:
        """Returns the key of a chunk's image tokens."""
        return f"{self.folder}tokens/{_number(chunk)}.safetensors"

    def candidate(self, index: int) -> str:
        """Returns the key of a candidate's picture."""
        return f"{self.folder}candidates/{_number(index)}.png"

    def refined(self, index: int) -> str:
        """Returns the key of a candidate's picture after the second pass."""
        return f"{self.folder}refined/{_number(index)}.png"

    def scores(self, chunk: int) -> str:
        """Returns the key of the scores of a chunk's pictures."""
        return f"{self.folder}scores/{_number(chunk)}.json"

    def poison_record(self, stage: str) -> str:
        """Returns the key of the record of crashes over the job at one stage."""
        return f"{self.poison_records}{stage}.json"

    def __contains__(self, key: str) -> bool:
        return key.startswith(self.folder) and bool(_KEY.fullmatch(key))

    def check(self, key: str) -> str:
        """Returns the key; raises `InvalidInputError` if it does not belong to the job."""
        if key not in self:
            raise InvalidInputError("key", f"{key[:80]!r} must be in {self.folder}")
        return key


def is_intermediate(key: str) -> bool:
    """Returns whether an object is useless once its job has ended: all except pictures and the result."""
    name = key.removeprefix(JOBS).partition("/")[2]
    return key.startswith(JOBS) and (
        name in ("encoding.safetensors", "cancelled.json")
        or name.startswith(("encodings/", "tokens/", "scores/", "suspects/"))
    )


def _number(number: int) -> str:
    if number < 0:
        raise InvalidInputError("key", f"{number} must not be negative")
    return str(number)
