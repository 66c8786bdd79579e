"""Fan-in: collects the scores of a job's chunks, in any order, and ends the job after the last one."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from safetensors import SafetensorError
from sqlalchemy import insert, select

from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.results import ResultFile, ResultPicture, ScoredPicture, ScoresFile, unpack_features
from smalti.selection import best, choose
from smalti.service import failpoints
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    OPEN_STATES,
    Chunk,
    ChunkProgress,
    ChunkState,
    Job,
    JobState,
    ScoredCandidate,
)
from smalti.services.gateway.jobs.aside import take_back
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import (
    advance,
    chunks_of,
    end,
    lock_open,
    start,
    store_choice,
    touch,
)
from smalti.services.gateway.jobs.objects import StoredObject, added, find_object, tokens_of
from smalti.services.gateway.jobs.reading import is_of_earlier_revision, parameter_of, parameters_of
from smalti.services.gateway.jobs.repository import all_candidates, ranked_pictures
from smalti.services.gateway.jobs.spec import JobParameters
from smalti.services.gateway.policy.content_policy import refusal
from smalti.services.gateway.work.redoing import redo
from smalti.services.gateway.work.refining import Refining
from smalti.services.gateway.work.verdicts import PictureChecks
from smalti.storage import JobKeys, ObjectRef, content_key

log = logging.getLogger(__name__)

MAX_READS: Final = 8
"""Maximum number of objects that are read at the same time."""

ChunkFeatures = Float[np.ndarray, "candidates features"] | None
"""Features of each candidate of a chunk; None if the object is missing or damaged."""
ChunkTokens = list[tuple[int, ...]] | None
"""Image tokens of each candidate of a chunk; None if the object is missing or damaged."""


class _LostObjectsError(Exception):
    """Objects that the end of a job needs are missing or damaged."""

    def __init__(self, what: str, objects: Mapping[int, str]) -> None:
        super().__init__(f"its {what} are missing or damaged")
        self.objects = objects
        """The key of the object, by chunk."""


class FanIn:
    """Stores the scores of chunks, and ends a job when all its candidates are ranked; thread-safe."""

    def __init__(self, context: GatewayContext, refining: Refining) -> None:
        """Starts the threads.

        Args:
            context: shared by the parts of the gateway.
            refining: receives the chosen pictures of jobs that refine them.
        """
        self._context = context
        self._refining = refining
        self._database = context.database
        self._store = context.store
        self._events = context.events
        self._clock = context.clock
        self._readers = ThreadPoolExecutor(MAX_READS, thread_name_prefix="fan-in")
        self._checks = PictureChecks(context, self.finish)

    def close(self) -> None:
        """Ends the threads."""
        self._checks.close()
        self._readers.shutdown()

    def ranked(self, job_id: str, number: int, objects: Sequence[ObjectRef], lease: int | None) -> None:
        """Stores the scores of a chunk, and ends the job if all its candidates are ranked.

        If the scores are missing or damaged, the chunk is sent again.

        Args:
            job_id: the job.
            number: the chunk.
            objects: the scores, and the tokens.
            lease: the lease under which they were made.

        Raises:
            UnavailableError: the store or the database does not answer.
        """
        keys = JobKeys(job_id)
        refs = {ref.name: ref for ref in objects}
        if (prefetch := self._chunks_to_prefetch(job_id, number, lease)) is None:
            return
        if (ref := refs.get(keys.scores(number))) is None:
            redo(self._context, job_id, [number], "the ranker has written no scores")
            return
        tokens = {chunk.number: tokens_of(chunk) for chunk in prefetch}
        if prefetch and (own := refs.get(keys.tokens(number))):
            tokens[number] = StoredObject(own.key, own.sha256)
        reads = self._start_reads(tokens)
        try:
            scores = self._read_scores(ref)
        except (MissingObjectError, DamagedObjectError) as error:
            redo(self._context, job_id, [number], str(error), ref.key)
            return
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, job_id)
            chunk = session.get(Chunk, (job_id, number)) if job else None
            if job is None or chunk is None or is_of_earlier_revision(job, lease):
                return
            expected = range(chunk.first, chunk.first + chunk.count)
            fits = sorted(scored.index for scored in scores.pictures) == list(expected)
            if fits and advance(job, chunk, ChunkProgress.RANKED):
                start(job, to_microseconds(now))
                touch(job)
                chunk.objects = added(chunk.objects, job_id, objects)
                rows = [_row(scored, job_id, ref) for scored in scores.pictures]
                session.execute(insert(ScoredCandidate), rows)
            complete = job.candidates_ranked >= job.candidates
        failpoints.reach("gateway.after-ranked", job=job_id, prompt=parameter_of(job, "prompt", ""))
        if not fits:
            redo(self._context, job_id, [number], "its scores belong to other candidates", ref.key)
        elif complete:
            self.finish(job_id, reads)
        else:
            self._events.changed(job_id)

    def finish(self, job_id: str, reads: Mapping[int, Future[ChunkTokens]] = MappingProxyType({})) -> bool:
        """Ends a job whose candidates are all ranked: writes `result.json`, then sets the state.

        A job with a second pass ends once its chosen pictures are refined; before that, they are sent to be refined. If
        the operator's policy is asked about pictures, the next best replace those that it refuses, and a job fails of
        which it refuses all.

        Args:
            job_id: the job.
            reads: pending reads of its tokens, by chunk.

        Returns:
            Whether this call has ended the job. False if it had ended before, if its pictures are still to be refined
            or need a verdict, or if a chunk must be made again.

        Raises:
            UnavailableError: the store or the database does not answer; the sweeper tries again.
        """
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None or job.state not in OPEN_STATES or job.candidates_ranked < job.candidates:
                return False
            if self._checks.asks(job):
                return False
            if job.refining and job.pictures_refined < job.pictures_to_refine:
                return False
            pictures = ranked_pictures(session, job_id) if job.refining else all_candidates(session, job_id)
            chunks = chunks_of(session, job)
        parameters = parameters_of(job)
        keys = JobKeys(job_id)
        if all(picture.refusal is not None for picture in pictures):
            return self._refuse(job_id)
        policy = self._context.policy
        if policy.pictures_wait and not any(picture.checked for picture in pictures):
            return False  # Whatever is chosen needs a verdict.
        try:
            winners = pictures if job.refining else self._choose(keys, chunks, pictures, parameters)
            unchecked = [picture for picture in winners if not picture.checked]
            if unchecked and policy.asks_pictures:
                self._checks.start(job, chunks, unchecked)
                return False
            if parameters.second_pass and not job.refining:
                self._refining.choose(job, chunks, winners)
                return False
            tokens = self._read_tokens(chunks, winners, reads)
        except _LostObjectsError as error:
            redo(self._context, job_id, list(error.objects), str(error), *error.objects.values())
            return False
        result = _result(job_id, parameters, winners, tokens)
        fields = {"job": job_id, "prompt": parameters.prompt}
        failpoints.reach("gateway.before-result", **fields)
        self._store.put(keys.result, result.to_bytes(), content_type="application/json")
        failpoints.reach("gateway.after-result", **fields)
        with self._database.write() as session:
            job = lock_open(session, job_id)
            if job is None or job.candidates_ranked < job.candidates:
                return False
            if job.pictures_refined < job.pictures_to_refine:
                return False
            store_choice(session, winners)
            take_back(job)
            outcome = end(session, job, JobState.SUCCEEDED, self._clock())
        failpoints.reach("gateway.after-end", **fields)
        self._events.ended(outcome)
        return True

    def _refuse(self, job_id: str) -> bool:
        """Ends a job of which the policy refuses every picture; returns whether this call has ended it."""
        with self._database.write() as session:
            job = lock_open(session, job_id)
            if job is None or job.candidates_ranked < job.candidates:
                return False
            of_job = ScoredCandidate.job_id == job_id, ScoredCandidate.refusal.is_not(None)
            message = session.scalar(select(ScoredCandidate.refusal).where(*of_job).limit(1)) or ""
            error = refusal("every picture of the job", message)
            outcome = end(session, job, JobState.FAILED, self._clock(), error=error)
        self._events.ended(outcome)
        return True

    def _chunks_to_prefetch(self, job_id: str, number: int, lease: int | None) -> tuple[Chunk, ...] | None:
        """Returns the chunks whose tokens to read while the scores of a chunk are read: all of them for the last chunk.

        A job with many chunks is not prefetched, since most of its candidates do not become pictures; nor is a job with
        a second pass, which does not end yet. Returns None if the scores must not be read: the job has ended, or the
        event is a duplicate.
        """
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None or job.state not in OPEN_STATES or is_of_earlier_revision(job, lease):
                return None
            chunks = {chunk.number: chunk for chunk in chunks_of(session, job)}
        chunk = chunks.get(number)
        if chunk is None:
            return None
        if chunk.state is ChunkState.DONE:
            if job.candidates_ranked >= job.candidates:
                self.finish(job_id)
            return None
        is_last = job.candidates_ranked + chunk.count >= job.candidates
        ends_job = is_last and not job.pictures_to_refine and not self._context.policy.asks_pictures
        return tuple(chunks.values()) if ends_job and len(chunks) <= MAX_READS else ()

    def _choose(
        self,
        keys: JobKeys,
        chunks: Sequence[Chunk],
        pictures: Sequence[ScoredCandidate],
        parameters: JobParameters,
    ) -> list[ScoredCandidate]:
        """Returns the candidates that become pictures, in the order in which they are chosen; none that is refused.

        Args:
            keys: keys of the job's objects.
            chunks: all chunks of the job.
            pictures: all candidates, by index.
            parameters: how to choose.

        Raises:
            _LostObjectsError: scores with the features of some candidates are missing or damaged.
        """
        permitted = [index for index, picture in enumerate(pictures) if picture.refusal is None]
        scores = [pictures[index].score for index in permitted]
        if parameters.diversity == 0:
            return [pictures[permitted[index]] for index in best(scores, parameters.n)]
        refs = {
            chunk.number: find_object(chunk.objects, chunk.job_id, keys.scores(chunk.number))
            for chunk in chunks
        }
        reads = {
            number: self._readers.submit(copy_context().run, self._read_features, ref)
            for number, ref in refs.items()
        }
        found = {number: read.result() for number, read in reads.items()}
        lost = {number: refs[number].key for number, features in found.items() if features is None}
        if lost:
            raise _LostObjectsError("features", lost)
        # Chunks, and the candidates in them, are in the order of the candidates.
        features = np.concatenate([each for each in found.values() if each is not None])[permitted]
        chosen = choose(scores, features, parameters.n, parameters.diversity)
        return [pictures[permitted[index]] for index in chosen]

    def _read_scores(self, ref: ObjectRef | StoredObject) -> ScoresFile:
        return ScoresFile.parse(ref.key, self._store.get(ref.key, sha256=ref.sha256))

    def _read_features(self, ref: StoredObject) -> ChunkFeatures:
        try:
            scores = self._read_scores(ref)
            ordered = sorted(scores.pictures, key=lambda picture: picture.index)
            return unpack_features(ref.key, [picture.features for picture in ordered])
        except (MissingObjectError, DamagedObjectError):
            return None

    def _read_tokens(
        self,
        chunks: Sequence[Chunk],
        winners: Sequence[ScoredCandidate],
        reads: Mapping[int, Future[ChunkTokens]],
    ) -> dict[int, tuple[int, ...]]:
        """Returns the tokens of the winners, by candidate index.

        Args:
            chunks: all chunks of the job.
            winners: the candidates that become pictures.
            reads: pending reads, by chunk.

        Raises:
            _LostObjectsError: the tokens of some winners are missing or damaged.
        """
        wanted = {
            chunk.number: [
                picture.candidate - chunk.first
                for picture in winners
                if 0 <= picture.candidate - chunk.first < chunk.count
            ]
            for chunk in chunks
        }
        wanted = {number: positions for number, positions in wanted.items() if positions}
        first = {chunk.number: chunk.first for chunk in chunks}
        objects = {chunk.number: tokens_of(chunk) for chunk in chunks if chunk.number in wanted}
        found: dict[int, tuple[int, ...]] = {}
        lost = []
        reads = {**self._start_reads({n: each for n, each in objects.items() if n not in reads}), **reads}
        for number, positions in wanted.items():
            tokens = reads[number].result()
            if tokens is None or max(positions) >= len(tokens):
                lost.append(number)
                continue
            found |= {first[number] + position: tokens[position] for position in positions}
        if lost:
            raise _LostObjectsError("tokens", {number: objects[number].key for number in lost})
        return found

    def _start_reads(self, tokens: Mapping[int, StoredObject]) -> dict[int, Future[ChunkTokens]]:
        """Starts reading the tokens of chunks in the thread pool."""
        return {
            number: self._readers.submit(copy_context().run, self._read_chunk_tokens, each)
            for number, each in tokens.items()
        }

    def _read_chunk_tokens(self, tokens: StoredObject) -> ChunkTokens:
        try:
            array = safetensors.numpy.load(self._store.get(tokens.key, sha256=tokens.sha256))["tokens"]
            return [tuple(map(int, row)) for row in array]
        except (MissingObjectError, DamagedObjectError, SafetensorError, KeyError, TypeError):
            return None


def _row(scored: ScoredPicture, job_id: str, scores: ObjectRef) -> dict[str, Any]:
    """Returns the row of a candidate; `scores` is the object with its score."""
    name = JobKeys(job_id).candidate(scored.index)
    has_names = scores.key == scores.name  # Its messages were of version 1.
    copied = ("score", "width", "height", "size", "sha256", "wording")
    return {
        **{each: getattr(scored, each) for each in copied},
        "job_id": job_id,
        "candidate": scored.index,
        "key": name if has_names else content_key(name, scored.sha256),
    }


def _result(
    job_id: str,
    parameters: JobParameters,
    winners: Sequence[ScoredCandidate],
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
        vary=parameters.vary,
        diversity=parameters.diversity,
        second_pass=parameters.second_pass,
        refiner=parameters.refiner,
        pictures=tuple(
            ResultPicture(
                index=picture.candidate,
                score=picture.score,
                sha256=picture.sha256,
                size=picture.size,
                width=picture.width,
                height=picture.height,
                wording=picture.wording,
                key=picture.key,
                tokens=tokens[picture.candidate],
            )
            for picture in winners
        ),
    )
