"""The bodies of our own API. Names and ranges are those of the gRPC contract."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smalti.parameters import DrawingParameters
from smalti.validation import Strict

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]


Index = Annotated[int, Field(ge=0, lt=2**31)]


class PictureSource(Strict):
    """A picture, and which part of it is kept: one of the last three."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    job_id: str | None = None
    """An earlier job that has the picture."""
    candidate: Index | None = None
    """The candidate of that job."""
    tokens: Annotated[list[Index], Field(min_length=1)] | None = None
    """In place of a job: the image tokens of the picture, row by row, as `parameters` of a job has them."""
    keep_rows: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Number of rows of tiles to keep, from the top."""
    redrawn_tiles: Annotated[list[Index], Field(min_length=1)] | None = None
    """Positions of the tiles to draw anew, row by row from 0, in ascending order; all others are kept."""
    strength: float | None = None
    """Share of the tiles to draw anew, between 0 and 1; each candidate draws other ones anew."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        named = [self.job_id is not None, self.candidate is not None]
        if named != [self.tokens is None] * 2:
            raise ValueError("must have either job_id and candidate, or tokens")
        return self


class JobRequest(DrawingParameters):
    """A job. What is missing takes the default of the model or of the gateway; an unknown field is refused."""

    prompt: str
    """What to draw."""
    model: str | None = None
    """A model of `GET /v1/models`."""
    revision: str | None = None
    """The revision to draw with; any that can be drawn now if it is missing."""
    n: int | None = None
    """Number of pictures to return, the best of the candidates."""
    first_candidate: int | None = None
    """Index of the first candidate: with the same seed, 16 draws sixteen more."""
    initial_image: PictureSource | None = None
    """A picture to start from."""
    priority: Literal["interactive", "batch"] | None = None
    """`batch` uses what other jobs leave free."""
    time_limit: float | None = None
    """Time in seconds after which the job expires; waiting counts."""
    retention: float | None = None
    """Time in seconds for which the job and its pictures are kept after its end."""
    labels: dict[str, str] | None = None
    """Labels by which jobs can be listed."""
    webhook: str | None = None
    """An https URL that is told when the job has ended, with a signed notice; by default that of the tenant."""
    webhook_prompt: bool | None = None
    """Whether the notice contains the prompt."""
    request_id: str | None = None
    """A UUID that makes the call safe to repeat, in place of the header `Idempotency-Key`."""


class Reading(BaseModel):
    """How the model has read the prompt."""

    effective_prompt: str
    cut: bool
    """Whether the end of the prompt was ignored, since it is too long."""
    unknown_words: list[str]
    left_out_words: list[str]
    notice: str
    """One line on what is drawn in place of the prompt; empty if nothing was lost."""
    text_tokens: int


class Progress(BaseModel):
    """How far a job is."""

    prompt_encoded: bool
    candidates: int
    rows: int
    """Rows of tiles of all candidates."""
    rows_drawn: int
    candidates_drawn: int
    candidates_decoded: int
    candidates_ranked: int
    pictures_refused: int
    """Candidates whose pictures the operator's policy has refused."""


class PictureObject(BaseModel):
    """A picture of a job that has succeeded."""

    candidate: int
    rank: int
    """0 for the best."""
    score: float
    width: int
    height: int
    media_type: str
    size_bytes: int
    sha256: str
    wording: str
    """What was drawn, with `vary`; empty if that is the prompt."""
    url: str
    """The file; the URL works as long as the picture is kept."""


class Problem(BaseModel):
    """An error: problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    """The reason for programs, such as `INVALID_INPUT`; see the gRPC contract."""


class JobObject(BaseModel):
    """A job."""

    id: str
    version: int
    """Grows with every change."""
    state: State
    request_id: str
    parameters: dict[str, Any]
    """What is drawn, with every default filled in. Sent back, it draws the same pictures. The seed is a string; lists
    leave `initial_image` out."""
    priority: str
    labels: dict[str, str]
    reading: Reading | None = None
    progress: Progress
    jobs_ahead: int | None = None
    """Open jobs before this one, while it is queued."""
    pictures: list[PictureObject] | None = None
    """The best first, once the job has succeeded; missing in lists."""
    error: Problem | None = None
    """Why the job has failed."""
    created: str
    """Times are in UTC by RFC 3339."""
    started: str | None = None
    ended: str | None = None
    expires: str | None = None
    deleted: str | None = None
    """When the job and its pictures are deleted."""


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobObject]
    next_page_token: str
    """For the parameter `page_token` of the next page; empty on the last one."""


class VocabularyObject(BaseModel):
    """The words that a model knows."""

    closed: bool
    """Whether other words are replaced or left out. False for a model that reads any text; it has no groups."""
    groups: dict[str, list[str]]
    """The words by their purpose, such as `things` and `colours`."""


class NativeModel(BaseModel):
    """A model, its defaults and its limits."""

    name: str
    revision: str
    description: str
    licence: str
    default: bool
    """Whether it is used if a request does not name a model."""
    image_width: int
    image_height: int
    rows: int
    """Rows of tiles in a picture."""
    columns: int
    """Tiles in a row."""
    default_n: int
    default_candidates: int
    prompt_characters: int
    """Maximum length of a prompt."""
    max_candidates: int
    vocabulary: VocabularyObject | None = None
    """Missing in lists."""


class NativeModelList(BaseModel):
    """The models."""

    models: list[NativeModel]
