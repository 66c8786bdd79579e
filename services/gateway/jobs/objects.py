"""The objects of a job that the database knows: what the stages have reported.

Their keys depend on their content, so they do not follow from the job. They are stored as pairs of a key, without the
job's folder, and a SHA-256.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.errors import StoreUnavailableError
from smalti.messages import Stage
from smalti.services.gateway.database.tables import Chunk, Job, JobState, ScoredCandidate
from smalti.services.gateway.jobs.reading import parameter_of
from smalti.storage import JobKeys, ObjectRef, ObjectStore

log = logging.getLogger(__name__)

Pairs = list[Any]


@dataclass(frozen=True)
class StoredObject:
    """An object that a job needs."""

    key: str
    sha256: str | None = None
    """SHA-256 of its content; None if no stage has reported it, as in jobs of older versions."""


def added(pairs: Pairs | None, job_id: str, refs: Iterable[ObjectRef], *, count: bool = True) -> Pairs:
    """Returns the pairs with further objects.

    Args:
        pairs: those that are stored; None if there are none yet.
        job_id: the job.
        refs: the further objects.
        count: whether they count from now on, instead of earlier ones with the same name.
    """
    folder = JobKeys(job_id).folder
    new = [[ref.key.removeprefix(folder), ref.sha256] for ref in refs]
    old = pairs or []
    if count:
        return [*(pair for pair in old if pair not in new), *new]
    return [*(pair for pair in new if pair not in old), *old]


def find_object(pairs: Pairs | None, job_id: str, name: str) -> StoredObject:
    """Returns the object with a name that counts.

    Args:
        pairs: the stored pairs.
        job_id: the job.
        name: a name of `JobKeys`.
    """
    folder = JobKeys(job_id).folder
    for key, sha256 in reversed(pairs or []):
        ref = ObjectRef(key=folder + key, sha256=sha256)
        if ref.name == name:
            return StoredObject(ref.key, ref.sha256)
    return StoredObject(name)


def tokens_of(chunk: Chunk) -> StoredObject:
    """Returns the tokens that the pictures of a ranked chunk were decoded from."""
    return find_object(chunk.objects, chunk.job_id, JobKeys(chunk.job_id).tokens(chunk.number))


def known_keys(session: Session, job: Job) -> list[str]:
    """Returns the keys of all objects of a job that the database knows, without the job's folder.

    Only those of its result and its marker, and the records of what stages have written, follow from the job.
    """
    keys = JobKeys(job.id, parameter_of(job, "binding", 0))
    chunks = session.scalars(select(Chunk).where(Chunk.job_id == job.id)).all()
    found = [keys.result, keys.cancelled]
    found += _encodings(job, keys)
    for chunk in chunks:
        found += _of_chunk(chunk, keys)
    found += session.scalars(select(ScoredCandidate.key).where(ScoredCandidate.job_id == job.id))
    return sorted({key.removeprefix(keys.folder) for key in found})


def kept_pictures(session: Session, job_id: str) -> set[str]:
    """Returns the keys of the pictures that a succeeded job keeps: those of its candidates, plain and refined."""
    kept = set(session.scalars(select(ScoredCandidate.key).where(ScoredCandidate.job_id == job_id)))
    chunks = session.scalars(select(Chunk).where(Chunk.job_id == job_id)).all()
    kept |= {picture["picture"]["key"] for chunk in chunks for picture in chunk.pictures or ()}
    return kept


def write_marker(store: ObjectStore, job_id: str, state: JobState) -> None:
    """Writes the marker that tells the stages to stop working on a job."""
    reason = "expired" if state is JobState.EXPIRED else "cancelled"
    content = json.dumps({"reason": reason}).encode()
    store.put(JobKeys(job_id).cancelled, content, content_type="application/json")


def has_crashed_workers(store: ObjectStore, job_id: str) -> bool:
    """Returns whether workers have crashed over a job, perhaps because of another one: they find out which."""
    try:
        return any(True for _ in store.objects(JobKeys(job_id).poison_records))
    except StoreUnavailableError:
        return True


def store_is_writable(store: ObjectStore, lost: str) -> bool:
    """Returns whether a store can be written; if not, the log says that what is lost is not resent."""
    try:
        # A store whose disk is full can still be read, so reading would prove nothing.
        store.check()
    except StoreUnavailableError as error:
        log.warning("lost %s are not resent, since the store cannot be written: %s", lost, error)
        return False
    return True


def _encodings(job: Job, keys: JobKeys) -> list[str]:
    if job.encodings is None:  # Its messages were of version 1, or it has not begun.
        return [keys.encoding]
    refs = [ObjectRef(key=keys.folder + key, sha256=sha256) for key, sha256 in job.encodings]
    return [key for ref in refs for key in (ref.key, keys.outputs(Stage.ENCODE, ref.name))]


def _of_chunk(chunk: Chunk, keys: JobKeys) -> Sequence[str]:
    number = chunk.number
    stages = (Stage.GENERATE, Stage.DECODE, Stage.RANK) if chunk.pictures is None else (Stage.REFINE,)
    found = [keys.outputs(stage, number) for stage in stages]
    found += [picture["picture"]["key"] for picture in chunk.pictures or ()]
    if chunk.objects is None:  # Its messages were of version 1, or it has not begun.
        return [*found, keys.tokens(number), keys.scores(number)]
    return [*found, *(keys.folder + key for key, _ in chunk.objects)]
