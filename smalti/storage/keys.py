"""The keys of objects, which follow from the job and, for what a stage has made, from the content."""

import hashlib
import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from smalti.errors import InvalidInputError
from smalti.validation import Strict

JOBS = "jobs/"
"""The prefix of the objects of all jobs."""
MAX_KEY_LENGTH = 512
CONTENT_DIGITS = 12
"""Digits of the SHA-256 in a name."""

JOB_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
JobId = Annotated[str, StringConstraints(pattern=f"^{JOB_PATTERN}$")]
"""Letters, digits, `-` and `_`, at most 64; the first is a letter or a digit."""

# No part begins with a dot: `..` is impossible, and the local store uses such names for its own files.
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_INTERMEDIATE = (
    "encoding.safetensors",
    "encoding-",
    "encodings/",
    "tokens/",
    "scores/",
    "outputs/",
    "shard/",
    "suspects/",
)
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

    @property
    def name(self) -> str:
        """The key without the part that follows from the content: that of `JobKeys`."""
        stem, dot, suffix = self.key.rpartition(".")
        return stem.removesuffix(f"-{self.sha256[:CONTENT_DIGITS]}") + dot + suffix


def content_key(name: str, sha256: str) -> str:
    """Returns the key of an object with a certain content, so that no other content ever has this key.

    Args:
        name: the key without the content, such as `candidates/3.png`.
        sha256: the SHA-256 of the content.
    """
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{sha256[:CONTENT_DIGITS]}{dot}{suffix}"


class JobKeys:
    """The keys of one job.

    Those of encodings, tokens, pictures and scores are names: the content is added by `content_key`. Objects from
    messages of version 1 have the names themselves.
    """

    def __init__(self, job: str, binding: int = 0) -> None:
        """Creates the keys.

        Args:
            job: id of the job.
            binding: how often the job was bound to another revision after work had been sent; what the stages wrote
                before does not count any more.

        Raises:
            InvalidInputError: the job id is invalid.
        """
        if not re.fullmatch(JOB_PATTERN, job):
            raise InvalidInputError(
                "job", f"{job[:80]!r} is not a job id: at most 64 letters, digits, '-' and '_'"
            )
        self._binding = f"-{binding}" if binding else ""
        self.folder = f"{JOBS}{job}/"
        self.encoding = f"{self.folder}encoding.safetensors"
        self.encodings = f"{self.folder}encodings/"
        """The prefix of the encodings of a job whose candidates have wordings of their own."""
        self.result = f"{self.folder}result.json"
        self.cancelled = f"{self.folder}cancelled.json"
        self.shard_encodings = f"{self.folder}shard/encodings.safetensors"
        """The name of the encodings of all prompts of a shard; the stages work on a shard as on a job."""
        self.shard_tokens = f"{self.folder}shard/tokens.safetensors"
        self.shard_candidates = f"{self.folder}shard/candidates.tar"
        """The name of the pictures of all candidates of a shard."""
        self.shard_chosen = f"{self.folder}shard/chosen.tar"
        """The name of the chosen pictures of a shard, for the refiner."""
        self.shard_output = f"{self.folder}shard/output.tar"
        """The name of the pictures of a shard as its batch gets them; copied to the folder of the batch."""
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

    def outputs(self, stage: str, work: int | str) -> str:
        """Returns the key of the record of what a stage has written for a chunk, or of an encoding with this name."""
        name = work if isinstance(work, int) else work.rpartition("/")[2].partition(".")[0]
        return f"{self.folder}outputs/{stage}-{name}{self._binding}.json"

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
    return key.startswith(JOBS) and (name == "cancelled.json" or name.startswith(_INTERMEDIATE))


def is_picture(key: str) -> bool:
    """Returns whether an object is a picture of a job."""
    name = key.removeprefix(JOBS).partition("/")[2]
    return key.startswith(JOBS) and name.startswith(("candidates/", "refined/"))


def _number(number: int) -> str:
    if number < 0:
        raise InvalidInputError("key", f"{number} must not be negative")
    return str(number)
