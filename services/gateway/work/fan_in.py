"""From the scores of chunks to a job's pictures: whatever chunk is the last one, and in whatever order they come."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import MappingProxyType
from typing import Any, Final

import safetensors.numpy
from safetensors import SafetensorError
from sqlalchemy import delete, insert, select, update

from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.results import ResultFile, ResultPicture, ScoredPicture, ScoresFile
from smalti.service import failpoints
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import OPEN, Chunk, ChunkState, Job, Picture, Reached, State
from smalti.services.gateway.jobs.lifecycle import begin, chunks_of, end, lock_open, reach, unreach
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.jobs.spec import Parameters
from smalti.storage import JobKeys, ObjectRef, ObjectStore

log = logging.getLogger(__name__)

READERS: Final = 8
"""Objects that are read at the same time."""

Rows = list[tuple[int, ...]] | None
"""The tokens of a chunk's candidates; None when they are missing or damaged."""


class _LostTokensError(Exception):
    """Tokens of pictures that won are missing or damaged."""

    def __init__(self, chunks: Sequence[int]) -> None:
        super().__init__()
        self.chunks = chunks


class FanIn:
    """Takes the scores of chunks, and ends a job when all are there; every thread may use it."""

    def __init__(self, database: Database, store: ObjectStore, notices: JobObserver, clock: Clock) -> None:
        """Takes what it works with."""
        self._database = database
        self._store = store
        self._notices = notices
        self._clock = clock
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="fan-in")

    def close(self) -> None:
        """Ends its threads."""
        self._readers.shutdown()

    def ranked(self, job_id: str, number: int, objects: Sequence[ObjectRef]) -> None:
        """A chunk is ranked; ends the job if it was the last one.

        Scores that are missing or damaged let the chunk be sent again.

        Args:
            job_id: the job.
            number: the chunk.
            objects: what the stage has written: the scores.

        Raises:
            UnavailableError: the store or the database does not answer.
        """
        needed = self._needed(job_id, number)
        if needed is None:
            return
        keys = JobKeys(job_id)
        reading = self._begin_reading(keys, needed)
        try:
            scores = self._read_scores(keys, number, objects)
        except (MissingObjectError, DamagedObjectError) as error:
            self._again(job_id, [number], str(error), keys.scores(number))
            return
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, job_id)
            chunk = session.get(Chunk, (job_id, number)) if job else None
            if job is None or chunk is None:
                return
            expected = range(chunk.first, chunk.first + chunk.count)
            fits = sorted(scored.index for scored in scores.pictures) == list(expected)
            if fits and reach(job, chunk, Reached.RANKED):
                begin(job, to_microseconds(now))
                job.version += 1
                session.execute(insert(Picture), [_row(keys, job_id, scored) for scored in scores.pictures])
            complete = job.ranked >= job.candidates
        failpoints.reach("gateway.after-ranked", job=job_id, prompt=job.parameters["prompt"])
        if not fits:
            self._again(job_id, [number], "its scores are those of other candidates", keys.scores(number))
        elif complete:
            self.finish(job_id, reading)
        else:
            self._notices.changed(job_id)

    def finish(self, job_id: str, reading: Mapping[int, Future[Rows]] = MappingProxyType({})) -> bool:
        """Ends a job whose candidates are all ranked: `result.json` first, then the state.

        Args:
            job_id: the job.
            reading: what is being read already of its tokens, by chunks.

        Returns:
            Whether it has ended by this; not if it had ended before, or a part of it has to be drawn again.

        Raises:
            UnavailableError: the store or the database does not answer; it is tried again by the sweeper.
        """
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None or job.state not in OPEN or job.ranked < job.candidates:
                return False
            pictures = session.scalars(select(Picture).where(Picture.job_id == job_id)).all()
            chunks = chunks_of(session, job)
        parameters = Parameters.model_validate(job.parameters)
        keys = JobKeys(job_id)
        winners = best(pictures, parameters.n)
        try:
            tokens = self._read_tokens(keys, chunks, winners, reading)
        except _LostTokensError as error:
            self._again(job_id, error.chunks, "its tokens are gone", *(map(keys.tokens, error.chunks)))
            return False
        result = _result(job_id, parameters, winners, tokens)
        about = {"job": job_id, "prompt": parameters.prompt}
        failpoints.reach("gateway.before-result", **about)
        self._store.put(keys.result, result.to_bytes(), content_type="application/json")
        failpoints.reach("gateway.after-result", **about)
        with self._database.write() as session:
            job = lock_open(session, job_id)
            if job is None or job.ranked < job.candidates:
                return False
            ranks = [
                {"job_id": job_id, "candidate": picture.candidate, "rank": rank}
                for rank, picture in enumerate(winners)
            ]
            session.execute(update(Picture), ranks)
            ending = end(session, job, State.SUCCEEDED, self._clock())
        failpoints.reach("gateway.after-end", **about)
        self._notices.ended(ending)
        return True

    def _needed(self, job_id: str, number: int) -> tuple[int, ...] | None:
        """Returns the chunks whose tokens are needed as soon as a chunk's scores are there: of the last one all.

        Those of a long job are not, of which most pictures do not win. None is returned where the scores are not to be
        read: the job has ended, or the event comes again.
        """
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None or job.state not in OPEN:
                return None
            chunks = {chunk.number: chunk for chunk in chunks_of(session, job)}
        chunk = chunks.get(number)
        if chunk is None:
            return None
        if chunk.state is ChunkState.DONE:
            if job.ranked >= job.candidates:
                self.finish(job_id)
            return None
        is_last = job.ranked + chunk.count >= job.candidates
        return tuple(chunks) if is_last and len(chunks) <= READERS else ()

    def _read_scores(self, keys: JobKeys, number: int, objects: Sequence[ObjectRef]) -> ScoresFile:
        key = keys.scores(number)
        sha256 = next((ref.sha256 for ref in objects if ref.key == key), None)
        return ScoresFile.parse(key, self._store.get(key, sha256=sha256))

    def _read_tokens(
        self,
        keys: JobKeys,
        chunks: Sequence[Chunk],
        winners: Sequence[Picture],
        reading: Mapping[int, Future[Rows]],
    ) -> dict[int, tuple[int, ...]]:
        """Returns the tokens of the pictures that won, by their candidates' indices.

        Args:
            keys: the job's.
            chunks: all of the job's.
            winners: those that won.
            reading: what is being read already, by chunks.
        """
        wanted = {
            chunk.number: [
                picture.candidate - chunk.first
                for picture in winners
                if 0 <= picture.candidate - chunk.first < chunk.count
            ]
            for chunk in chunks
        }
        wanted = {number: places for number, places in wanted.items() if places}
        first = {chunk.number: chunk.first for chunk in chunks}
        found: dict[int, tuple[int, ...]] = {}
        lost = []
        reading = {**self._begin_reading(keys, [each for each in wanted if each not in reading]), **reading}
        for number, places in wanted.items():
            tokens = reading[number].result()
            if tokens is None or max(places) >= len(tokens):
                lost.append(number)
                continue
            found |= {first[number] + place: tokens[place] for place in places}
        if lost:
            raise _LostTokensError(lost)
        return found

    def _begin_reading(self, keys: JobKeys, chunks: Iterable[int]) -> dict[int, Future[Rows]]:
        """Begins to read the tokens of chunks."""
        return {
            number: self._readers.submit(copy_context().run, self._read_rows, keys.tokens(number))
            for number in chunks
        }

    def _read_rows(self, key: str) -> Rows:
        """Returns the tokens of a chunk, a tuple for each candidate; None when they are missing or damaged."""
        try:
            array = safetensors.numpy.load(self._store.get(key))["tokens"]
            return [tuple(map(int, row)) for row in array]
        except (MissingObjectError, DamagedObjectError, SafetensorError, KeyError, TypeError):
            return None

    def _again(self, job_id: str, numbers: Sequence[int], problem: str, *damaged: str) -> None:
        """Lets chunks be made again: what is damaged is removed, so that its stage does not find it done."""
        log.warning("chunks %s are made again: %s", list(numbers), problem, extra={"job": job_id})
        self._store.delete(*damaged)
        now = to_microseconds(self._clock())
        with self._database.write() as session:
            job = lock_open(session, job_id)
            if job is None:
                return
            for chunk in chunks_of(session, job):
                if chunk.number not in numbers:
                    continue
                unreach(job, chunk)
                chunk.state = ChunkState.LEASED
                chunk.sent = chunk.heard = True  # So it counts as an attempt, and comes to an end.
                chunk.deadline = now
                chunk.problem = problem
                candidates = Picture.candidate.between(chunk.first, chunk.first + chunk.count - 1)
                session.execute(delete(Picture).where(Picture.job_id == job_id, candidates))
            job.version += 1
        self._notices.changed(job_id)


def best(pictures: Sequence[Picture], n: int) -> list[Picture]:
    """Returns the n pictures with the highest scores, best first; of equal scores the lower index comes first.

    The same order as `smalti.engines.ranker.best`; what is not a number comes last.
    """
    return sorted(
        pictures, key=lambda picture: (math.isnan(picture.score), -picture.score, picture.candidate)
    )[:n]


def _row(keys: JobKeys, job_id: str, scored: ScoredPicture) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "candidate": scored.index,
        "score": scored.score,
        "width": scored.width,
        "height": scored.height,
        "size": scored.size,
        "sha256": scored.sha256,
        "key": keys.candidate(scored.index),
    }


def _result(
    job_id: str,
    parameters: Parameters,
    winners: Sequence[Picture],
    tokens: Mapping[int, tuple[int, ...]],
) -> ResultFile:
    return ResultFile(
        job=job_id,
        prompt=parameters.prompt,
        model=parameters.model,
        revision=parameters.revision,
        seed=parameters.seed,
        sampling=parameters.sampling,
        candidates=parameters.candidates,
        pictures=tuple(
            ResultPicture(
                index=picture.candidate,
                score=picture.score,
                sha256=picture.sha256,
                size=picture.size,
                width=picture.width,
                height=picture.height,
                key=picture.key,
                tokens=tokens[picture.candidate],
            )
            for picture in winners
        ),
    )
