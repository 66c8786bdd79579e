"""The second pass: sends the chosen pictures of a job to be refined, and takes the refined ones.

The plain pictures stay in the store with the other candidates; `refined/` holds what the second pass makes of them.
"""

import logging
from collections.abc import Mapping, Sequence

from sqlalchemy import insert, select, update

from smalti.messages import MAX_TO_REFINE, PictureToRefine
from smalti.service import failpoints
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import Chunk, ChunkState, Job, ScoredCandidate
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import (
    chunk_of,
    chunks_of,
    lock_open,
    new_chunk,
    refined,
    start,
    store_choice,
    touch,
)
from smalti.services.gateway.jobs.objects import StoredObject, added, find_object, tokens_of
from smalti.services.gateway.jobs.reading import is_of_earlier_revision, parameter_of, parameters_of
from smalti.services.gateway.work.redoing import redo
from smalti.storage import JobKeys, ObjectInfo, ObjectRef, find

log = logging.getLogger(__name__)


class Refining:
    """Chooses the pictures to refine, and takes the refined ones; thread-safe."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._database = context.database
        self._store = context.store
        self._events = context.events
        self._clock = context.clock

    def choose(self, job: Job, chunks: Sequence[Chunk], winners: Sequence[ScoredCandidate]) -> None:
        """Adds the chunks of pictures to refine to a job, or makes chunks of candidates again whose objects are lost.

        Args:
            job: the job, detached from its transaction.
            chunks: its chunks of candidates.
            winners: the pictures, the best first.

        Raises:
            UnavailableError: the store or the database does not answer; the sweeper tries again.
        """
        job_id, prompt = job.id, parameter_of(job, "prompt", "")
        second_pass = parameters_of(job).second_pass
        with_inputs = second_pass is not None and second_pass.refine is not None
        found = {
            picture.candidate: self._find(job, chunks, picture, with_inputs=with_inputs)
            for picture in winners
        }
        pictures = [each for each in found.values() if each]
        if len(pictures) < len(winners):
            lost = {chunk_of(chunks, candidate).number for candidate, each in found.items() if each is None}
            problem = "objects of the chosen pictures are missing, or not those that were ranked"
            redo(self._context, job_id, sorted(lost), problem)
            return
        size = min(self._context.settings.chunk, MAX_TO_REFINE)
        batches = [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]
        with self._database.write() as session:
            locked = lock_open(session, job_id)
            if locked is None or locked.refining or locked.candidates_ranked < locked.candidates:
                return
            locked.refining = True
            locked.pictures_to_refine = len(winners)  # Fewer than asked for, if the policy refuses some.
            touch(locked)
            store_choice(session, winners)
            session.execute(
                insert(Chunk),
                [
                    new_chunk(
                        job,
                        number,
                        first=0,
                        count=len(batch),
                        pictures=[each.model_dump(mode="json", exclude_none=True) for each in batch],
                    )
                    for number, batch in enumerate(batches, len(chunks))
                ],
            )
        failpoints.reach("gateway.after-chosen", job=job_id, prompt=prompt)
        self._events.chosen(job_id)
        self._events.changed(job_id)

    def refined(
        self, job_id: str, number: int, objects: Sequence[ObjectRef], *, lease: int | None = None
    ) -> bool:
        """Takes the refined pictures of a chunk; returns whether they were the last ones of the job.

        Args:
            job_id: the job.
            number: the chunk.
            objects: the refined pictures.
            lease: the lease under which they were made.

        Raises:
            UnavailableError: the store or the database does not answer.
        """
        infos = {ref.name: self._store.stat(ref.key) for ref in objects}
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, job_id)
            chunk = session.get(Chunk, (job_id, number)) if job else None
            if job is None or chunk is None or chunk.pictures is None:
                return False
            if is_of_earlier_revision(job, lease):
                return False
            if self._replaced(job, chunk, objects, infos):
                return False
            keys, side = JobKeys(job_id), self._side(job)
            rows = []
            for picture in chunk.pictures:
                info = infos.get(keys.refined(picture["candidate"]))
                if info is None or info.sha256 is None:
                    # The event is about other pictures, or its objects are lost. They are made again when the
                    # lease expires.
                    log.warning("refined pictures of chunk %d are missing", number, extra={"job": job_id})
                    return False
                rows.append(
                    {
                        "job_id": job_id,
                        "candidate": picture["candidate"],
                        "key": info.key,
                        "sha256": info.sha256,
                        "size": info.size,
                        "width": side,
                        "height": side,
                        "checked": False,  # It looks different now.
                    }
                )
            if refined(job, chunk):
                start(job, to_microseconds(now))
                touch(job)
                chunk.objects = added(chunk.objects, job_id, objects)
                session.execute(update(ScoredCandidate), rows)
            complete = job.pictures_refined >= job.pictures_to_refine
            prompt = parameter_of(job, "prompt", "")
        failpoints.reach("gateway.after-refined", job=job_id, prompt=prompt)
        if not complete:
            self._events.changed(job_id)
        return complete

    def _replaced(
        self, job: Job, chunk: Chunk, objects: Sequence[ObjectRef], infos: Mapping[str, ObjectInfo | None]
    ) -> bool:
        """Deletes refined pictures that are not those of the event; returns whether there are any.

        Otherwise the refiner would find them and skip the work when the lease expires.

        Args:
            job: the job, locked, so that nobody takes what is deleted.
            chunk: the chunk of the pictures.
            objects: the pictures of the event.
            infos: what is in the store, by name.
        """
        replaced = [ref.key for ref in objects if (info := infos[ref.name]) and info.sha256 != ref.sha256]
        if not replaced or chunk.state is ChunkState.DONE:
            return False
        log.warning(
            "refined pictures of chunk %d are not those that were written",
            chunk.number,
            extra={"job": job.id},
        )
        self._store.delete(*replaced)
        return True

    def inputs_lost(self, job_id: str, numbers: Sequence[int], problem: str) -> None:
        """Makes the candidates of pictures again whose objects the refiner has not found.

        Stages whose objects are still there pass the work on.

        Args:
            job_id: the job.
            numbers: the chunks of pictures.
            problem: what the refiner reports.
        """
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None:
                return
            chunks = chunks_of(session, job)
            lost = session.scalars(
                select(Chunk).where(Chunk.job_id == job_id, Chunk.number.in_(numbers))
            ).all()
        candidates = [picture["candidate"] for chunk in lost for picture in chunk.pictures or ()]
        again = {chunk_of(chunks, candidate).number for candidate in candidates}
        redo(self._context, job_id, sorted(again), problem)

    def _find(
        self, job: Job, chunks: Sequence[Chunk], winner: ScoredCandidate, *, with_inputs: bool
    ) -> PictureToRefine | None:
        """Returns references to all that the refiner needs of a candidate; None if something is missing.

        Args:
            job: the job.
            chunks: the chunks of candidates of its job.
            winner: the candidate.
            with_inputs: whether it needs the tokens and the encoding, too.
        """
        candidate = winner.candidate
        keys, chunk = JobKeys(winner.job_id), chunk_of(chunks, candidate)
        plain = ObjectRef(key=winner.key, sha256=winner.sha256)
        if plain.name != keys.candidate(candidate):
            return None  # It was refined already, and only ranking again tells what the plain picture is.
        wanted = [StoredObject(plain.key, plain.sha256)]
        if with_inputs:
            encoding = keys.encoding if winner.wording is None else keys.encoding_of(winner.wording)
            wanted += [
                tokens_of(chunk),
                find_object(job.encodings, job.id, encoding),
            ]
        found = find(self._store, *(each.key for each in wanted))
        if found is None:
            return None
        expected = [each.sha256 for each in wanted]
        replaced = [
            ref.key for ref, sha256 in zip(found, expected, strict=True) if sha256 not in (None, ref.sha256)
        ]
        if replaced:
            self._store.delete(*replaced)
            return None
        if not with_inputs:
            return PictureToRefine(candidate=candidate, picture=found[0])
        picture, tokens, used_encoding = found
        return PictureToRefine(
            candidate=candidate,
            picture=picture,
            tokens=tokens,
            row=candidate - chunk.first,
            encoding=used_encoding,
        )

    def _side(self, job: Job) -> int:
        """Returns width and height of the job's refined pictures."""
        second_pass = parameters_of(job).second_pass
        return self._context.catalogue.card_of(job).resolution * (second_pass.upscale if second_pass else 1)
