"""The names of objects: where the objects of a job are follows from the job alone."""

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from smalti.errors import InvalidInputError
from smalti.validation import Strict

JOBS = "jobs/"
"""The folder of all jobs."""
MAX_KEY_LENGTH = 512

JOB_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
JobId = Annotated[str, StringConstraints(pattern=f"^{JOB_PATTERN}$")]
"""Letters, digits, `-` and `_`, at most 64; the first is a letter or a digit."""

# A part never begins with a dot: there is no way up, and the local store keeps its own files under such names.
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(/{_PART})*")


def check_key(key: str) -> str:
    """Returns the key; raises `InvalidInputError` when it is none."""
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidInputError(
            "key",
            f"{key[:80]!r} is no key: names of letters, digits, '.', '_' and '-', with '/' between them",
        )
    return key


def _key_of_model(key: str) -> str:
    try:
        return check_key(key)
    except InvalidInputError as error:
        raise ValueError(error.problem) from None


Key = Annotated[str, AfterValidator(_key_of_model)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ObjectRef(Strict):
    """An object and its content."""

    key: Key
    sha256: Sha256


class JobKeys:
    """The keys of one job."""

    def __init__(self, job: str) -> None:
        """Takes the job's id; raises `InvalidInputError` when it is none."""
        if not re.fullmatch(JOB_PATTERN, job):
            raise InvalidInputError("job", f"{job[:80]!r} is no id of a job")
        self.folder = f"{JOBS}{job}/"
        self.encoding = f"{self.folder}encoding.safetensors"
        self.result = f"{self.folder}result.json"
        self.cancelled = f"{self.folder}cancelled.json"

    def tokens(self, chunk: int) -> str:
        """Returns the key of a chunk's image tokens."""
        return f"{self.folder}tokens/{_number(chunk)}.safetensors"

    def candidate(self, index: int) -> str:
        """Returns the key of a candidate's picture."""
        return f"{self.folder}candidates/{_number(index)}.png"

    def scores(self, chunk: int) -> str:
        """Returns the key of the scores of a chunk's pictures."""
        return f"{self.folder}scores/{_number(chunk)}.json"

    def suspect(self, name: str) -> str:
        """Returns the key of the record of work over which workers have died."""
        return f"{self.folder}suspects/{name}.json"

    def __contains__(self, key: str) -> bool:
        return key.startswith(self.folder) and bool(_KEY.fullmatch(key))

    def check(self, key: str) -> str:
        """Returns the key; raises `InvalidInputError` when it is not in the job's folder."""
        if key not in self:
            raise InvalidInputError("key", f"{key[:80]!r} is not in {self.folder}")
        return key


def is_intermediate(key: str) -> bool:
    """Says whether an object is of no use once its job has ended: all but pictures and result."""
    name = key.removeprefix(JOBS).partition("/")[2]
    return key.startswith(JOBS) and (
        name in ("encoding.safetensors", "cancelled.json")
        or name.startswith(("tokens/", "scores/", "suspects/"))
    )


def _number(number: int) -> str:
    if number < 0:
        raise InvalidInputError("key", f"{number} is no number of a chunk or a candidate")
    return str(number)
