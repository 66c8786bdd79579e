"""The tasks of the stages, and which task or event follows from which."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from smalti.messages.envelope import (
    MAX_CHUNKS,
    MAX_GIVEN_TOKENS,
    MAX_IN_CHUNK,
    MAX_TO_REFINE,
    Chunk,
    Extensible,
    Index,
    Indices,
    Prompt,
    ShortText,
    Token,
)
from smalti.messages.events import Progress, StageDone
from smalti.messages.queues import Stage
from smalti.messages.routed import RoutedTask
from smalti.messages.routing import MAX_ADAPTERS, Adapter
from smalti.parameters import FREE, CandidateIndex, Flag, SamplingParameters, SecondPass, Seed
from smalti.storage import ObjectRef

_SINCE: Final[Mapping[int, tuple[str, ...]]] = {
    2: ("vary", "keep_features", "strength"),
    3: ("adapters",),
}
"""The fields that came with a version."""


class StageTask(RoutedTask):
    """The fields of the tasks of a job."""

    prompt: Prompt
    seed: Seed
    sampling: SamplingParameters
    candidates_in_job: Annotated[int, Field(ge=1, le=1024)]
    """Number of candidates in the whole job, for the record in each picture."""
    given: Annotated[tuple[Token, ...], Field(max_length=MAX_GIVEN_TOKENS)] = ()
    """Image tokens by position, the same for all candidates. Where one is `FREE`, and after the last, tokens are
    generated. Since version 2, a task may have `FREE` ones; before, all are at the beginning."""
    strength: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of `given`, which then is a whole picture, that each candidate draws anew: which tokens these are follows
    from the seed and the candidate. None keeps all of `given`. Since version 2."""
    vary: Flag = False
    """Whether each candidate is generated from a wording of its own, which says what the prompt leaves open. Since
    version 2."""
    keep_features: Flag = False
    """Whether the ranker also writes what the pictures look like, for a choice of different ones. Since version 2."""
    adapters: Annotated[
        tuple[Adapter, ...], Field(max_length=MAX_ADAPTERS, exclude_if=lambda adapters: not adapters)
    ] = ()
    """Adapters to generate with; a worker that cannot use them refuses the task. Since version 3."""

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        for needed, names in _SINCE.items():
            for name in names:
                if self.version < needed and getattr(self, name):
                    raise ValueError(f"{name} needs version {needed}")
        if FREE in self.given and (self.version < 2 or self.strength is not None):
            raise ValueError("given: a position without a token needs version 2, and no strength")
        return self

    def _carried(self) -> dict[str, Any]:
        """Returns the fields that the next message repeats, unknown ones too unless it has its own of that name."""
        return self._unknown(_known_fields()) | {name: getattr(self, name) for name in StageTask.model_fields}


class EncodeTask(StageTask):
    """Encode the prompt, then have the chunks generated."""

    stage_queue = Stage.ENCODE

    kind: Literal["encode"] = "encode"
    chunks: Annotated[tuple[Chunk, ...], Field(min_length=1, max_length=MAX_CHUNKS)]
    """The chunks to generate; a job with more chunks than fit has several such tasks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [chunk.chunk for chunk in self.chunks]
        candidates = [index for chunk in self.chunks for index in chunk.candidates]
        if len(set(numbers)) < len(numbers) or len(set(candidates)) < len(candidates):
            raise ValueError("a chunk or a candidate occurs twice")
        # The event that follows names the encodings.
        if self.vary and len(candidates) > MAX_IN_CHUNK:
            raise ValueError(f"a task with wordings has {len(candidates)} candidates; at most {MAX_IN_CHUNK}")
        return self

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return self.job, self.kind, *(str(chunk.chunk) for chunk in self.chunks), *self._bound

    def next(
        self, encoding: ObjectRef | Mapping[CandidateIndex, ObjectRef], effective_prompt: str
    ) -> "tuple[GenerateTask, ...]":
        """Returns the tasks that follow.

        Args:
            encoding: the encoding; must be durable. With `vary`, the encoding of each candidate.
            effective_prompt: the prompt in words that the model knows.
        """
        carried = self._carried()
        if self.version > 1 and effective_prompt != self.prompt:
            carried["effective_prompt"] = effective_prompt

        def encodings(candidates: Indices) -> dict[str, Any]:
            if isinstance(encoding, ObjectRef):
                return {"encoding": encoding}
            return {"encodings": tuple(encoding[candidate] for candidate in candidates)}

        return tuple(
            GenerateTask(
                **carried, chunk=chunk.chunk, candidates=chunk.candidates, **encodings(chunk.candidates)
            )
            for chunk in self.chunks
        )


class ChunkTask(StageTask):
    """The fields of the tasks for one chunk."""

    kind: str
    chunk: Index
    candidates: Indices
    effective_prompt: Prompt | None = None
    """The prompt in words that the model knows. None if these are the prompt's own, which keeps the largest task within
    `MAX_MESSAGE_BYTES`. Always None in version 1: there each stage rewrites the prompt itself."""

    @model_validator(mode="after")
    def _check_chunk(self) -> Self:
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a candidate occurs twice")
        if self.version < 2 and self.effective_prompt is not None:
            raise ValueError("effective_prompt needs version 2")
        return self

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return self.job, self.kind, str(self.chunk), *self._bound

    def from_the_start(self) -> EncodeTask:
        """Returns the task that makes the chunk again, starting from the prompt."""
        chunk = Chunk(chunk=self.chunk, candidates=self.candidates)
        return EncodeTask(**{**StageTask._carried(self), "attempt": self.attempt + 1}, chunks=(chunk,))

    def _carried(self) -> dict[str, Any]:
        return {
            **super()._carried(),
            "chunk": self.chunk,
            "candidates": self.candidates,
            "effective_prompt": self.effective_prompt,
        }


class GenerateTask(ChunkTask):
    """Generate the image tokens of the candidates."""

    stage_queue = Stage.GENERATE

    kind: Literal["generate"] = "generate"
    encoding: ObjectRef | None = None
    """The encoding of the prompt; None with `vary`."""
    encodings: Annotated[
        tuple[ObjectRef, ...], Field(max_length=MAX_IN_CHUNK, exclude_if=lambda refs: not refs)
    ] = ()
    """With `vary`, the encodings of the candidates' wordings, in the order of the candidates; some may be equal."""

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        if not self.vary:
            self._check_names(self.encoding_refs, (self.keys.encoding,))
        elif self.encoding is not None or len(self.encodings) != len(self.candidates):
            raise ValueError("a task with wordings must have an encoding for each candidate")
        for ref in self.encodings:
            if ref.key not in self.keys or not ref.key.startswith(self.keys.encodings) or ref.key == ref.name:
                raise ValueError(f"{ref.key} must be in {self.keys.encodings}")
        return self

    @property
    def encoding_refs(self) -> tuple[ObjectRef, ...]:
        """References to the encodings: one for all candidates, or one for each."""
        return self.encodings if self.encoding is None else (self.encoding, *self.encodings)

    def next(self, tokens: ObjectRef) -> "DecodeTask":
        """Returns the task that follows; the tokens must be durable."""
        return DecodeTask(**self._carried(), tokens=tokens)

    def progress(self, rows: int, of: int, tokens: tuple[tuple[int, ...], ...] = ()) -> Progress:
        """Returns the event that tells how far the chunk is; see `Progress` for the arguments."""
        return Progress(**self._event_fields(), candidates=self.candidates, rows=rows, of=of, tokens=tokens)


class DecodeTask(ChunkTask):
    """Decode the tokens of the candidates into pictures."""

    stage_queue = Stage.DECODE

    kind: Literal["decode"] = "decode"
    tokens: ObjectRef

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        self._check_names((self.tokens,), (self.keys.tokens(self.chunk),))
        return self

    def next(self, pictures: tuple[ObjectRef, ...]) -> "RankTask":
        """Returns the task that follows; the pictures must be durable and in the order of the candidates."""
        carried = self._carried()
        if self.version > 1:
            carried["tokens"] = self.tokens
        return RankTask(**carried, pictures=pictures)


class RankTask(ChunkTask):
    """Score the pictures of the candidates. Only the event `StageDone` follows."""

    stage_queue = Stage.RANK

    kind: Literal["rank"] = "rank"
    pictures: Annotated[tuple[ObjectRef, ...], Field(max_length=MAX_IN_CHUNK)]
    """The pictures, in the order of the candidates."""
    tokens: ObjectRef | None = None
    """The tokens that the pictures were decoded from, for the event. Since version 2."""

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        self._check_names(self.pictures, tuple(self.keys.candidate(index) for index in self.candidates))
        if self.tokens is not None:
            if self.version < 2:
                raise ValueError("tokens needs version 2")
            self._check_names((self.tokens,), (self.keys.tokens(self.chunk),))
        return self

    def done(self, *objects: ObjectRef, **details: Any) -> StageDone:
        """Returns the event that says that the stage has finished; it names the tokens, too."""
        tokens = () if self.tokens is None else (self.tokens,)
        return super().done(*objects, *tokens, **details)


class PictureToRefine(Extensible):
    """A chosen picture, and what the refiner needs to know of it."""

    candidate: CandidateIndex
    picture: ObjectRef
    tokens: ObjectRef | None = None
    """The tokens of the candidate's chunk; None if the picture is only enlarged."""
    row: Annotated[int, Field(ge=0, lt=MAX_IN_CHUNK)] = 0
    """The candidate's row in the tokens."""
    encoding: ObjectRef | None = None
    """The encoding that the candidate was generated from; None if the picture is only enlarged."""


class RefineTask(StageTask):
    """Enlarge chosen pictures, and refine them. Only the event `StageDone` follows.

    It is not a task of a chunk of candidates: its pictures may come from several of them.
    """

    stage_queue = Stage.REFINE

    kind: Literal["refine"] = "refine"
    chunk: Index
    """Number of these pictures among the chunks of the job."""
    second_pass: SecondPass
    refiner: ShortText | None = None
    """Revision of the refiner's weights; None if the pictures are only enlarged."""
    pictures: Annotated[tuple[PictureToRefine, ...], Field(min_length=1, max_length=MAX_TO_REFINE)]

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        if self.version < 2:
            raise ValueError("refine needs version 2")
        candidates = [each.candidate for each in self.pictures]
        if len(set(candidates)) < len(candidates):
            raise ValueError("a candidate occurs twice")
        self._check_names(
            tuple(each.picture for each in self.pictures), tuple(map(self.keys.candidate, candidates))
        )
        for each in self.pictures:
            inputs = [ref for ref in (each.tokens, each.encoding) if ref is not None]
            if self.second_pass.refine is not None and (len(inputs) < 2 or self.refiner is None):
                raise ValueError("refine needs the tokens, the encoding, and the revision of the refiner")
            for ref in inputs:
                if ref.key not in self.keys:
                    raise ValueError(f"{ref.key} is not in the job's folder")
        return self

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return self.job, self.kind, str(self.chunk), *self._bound


@cache
def _known_fields() -> frozenset[str]:
    """Returns the names of the fields of all tasks."""
    kinds = (EncodeTask, GenerateTask, DecodeTask, RankTask, RefineTask)
    return frozenset(name for kind in kinds for name in kind.model_fields)
