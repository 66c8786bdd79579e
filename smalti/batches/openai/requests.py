"""The lines of OpenAI's Batch API: requests to draw pictures, or to draw parts of pictures anew."""

from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Final, Literal

from pydantic import Field, ValidationError, model_validator

from smalti.batches.checking import BatchDefaults
from smalti.batches.openai.quality import DEFAULT_COUNT, Quality, candidates_of, file_quality
from smalti.batches.prompts import MAX_ID_LENGTH
from smalti.batches.reading import (
    INPUT,
    EditSource,
    InputRow,
    Lines,
    RowProblem,
    read_object,
)
from smalti.errors import InvalidInputError
from smalti.foreign_text import check_text, printable
from smalti.parameters import DrawingParameters, ReceivedSeed
from smalti.validation import Strict, first_problem

GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
ENDPOINTS: Final = (GENERATIONS, EDITS)
MAX_LINE: Final = 2**25
"""Bytes of a line, which may have pictures in Base64."""
_DATA: Final = "data:"
_KEYS: Final = frozenset({"custom_id", "method", "url", "body"})


class ImageReference(Strict):
    """A picture of an edit."""

    file_id: str | None = None
    image_url: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "ImageReference":
        if (self.file_id is None) == (self.image_url is None):
            raise ValueError("must have either file_id or image_url")
        if self.image_url is not None and not self.image_url.startswith(_DATA):
            raise ValueError(
                "image_url must hold the picture itself (data:image/png;base64,...); upload it otherwise"
            )
        return self

    @property
    def source(self) -> str:
        """The id of the file, or the URL with the content."""
        return self.file_id or self.image_url or ""


class RequestBody(DrawingParameters):
    """The body of a request, with our extensions, as the HTTP API takes it; ranges are checked with all other rows."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    quality: Quality | None = None
    response_format: Literal["b64_json"] | None = None
    """URLs would expire while the batch is drawn."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    moderation: Literal["low", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None
    seed: ReceivedSeed | None = None
    """As the column of this name: if it is missing, it follows from that of the batch."""

    @property
    def file_format(self) -> str:
        """The format of the files in the answer."""
        return self.output_format or "png"

    @property
    def file_quality(self) -> int:
        """The quality of files in JPEG and WebP, from 0 to 100; raises `InvalidInputError` for PNG with loss."""
        return file_quality(self.file_format, self.output_compression)

    @property
    def edit(self) -> EditSource | None:
        """The pictures of an edit."""
        return None


class EditBody(RequestBody):
    """The body of an edit."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=1)]
    mask: ImageReference | None = None
    input_fidelity: Literal["high", "low"] | None = None

    @property
    def edit(self) -> EditSource:
        """The picture and the mask; without a mask, the transparent part of the picture is drawn anew."""
        return EditSource(self.images[0].source, None if self.mask is None else self.mask.source)


@dataclass(frozen=True, kw_only=True)
class OpenAIOptions:
    """What the requests of an input may ask for."""

    model: str
    """The name of the model that draws the batch."""
    size: str
    """The size of its pictures, such as "256x256"."""
    endpoint: str | None = None
    """The endpoint of all requests; None for that of the first one."""


@dataclass(frozen=True, kw_only=True)
class OpenAIRequest:
    """A line: a request, or what is wrong with its body."""

    line: int
    custom_id: str
    body: RequestBody | None
    problem: RowProblem | None = None
    shown: str = ""
    """The prompt, if the body cannot be used."""


class OpenAIReader:
    """Reads requests as rows; a `RowReader`.

    A line that is no request at all ends the reading, as OpenAI refuses the whole file then. A request with a body that
    cannot be used is a row with a problem.
    """

    unit = "line"
    has_ids = True

    def __init__(self, file: BinaryIO, options: OpenAIOptions, defaults: BatchDefaults) -> None:
        """Starts at the beginning of a file.

        Args:
            file: the input.
            options: what requests may ask for.
            defaults: the defaults of the batch, which decide on the candidates of a quality.
        """
        self._file = file
        self._options = options
        self._defaults = defaults
        self._endpoint = options.endpoint
        self.blank = 0

    def rows(self, first: int = 0) -> Iterator[InputRow]:  # noqa: D102
        for request in self.requests(first):
            if request.body is None:
                yield InputRow(
                    request.line, {"id": request.custom_id, "prompt": request.shown}, request.problem
                )
            else:
                yield InputRow(request.line, self._fields(request), edit=request.body.edit)

    def requests(self, first: int = 0) -> Iterator[OpenAIRequest]:
        """Yields the requests from one on.

        Raises:
            InvalidInputError: a line is no request; names the line and the key.
        """
        lines = Lines(self._file, MAX_LINE)
        row = 0
        for line in lines:
            if line.isspace():
                self.blank += 1
                continue
            # The endpoint of all is that of the first.
            if row >= first or row == 0:
                request = self._request(lines.number, line)
                if row >= first:
                    yield request
            row += 1

    def _request(self, number: int, line: bytes) -> OpenAIRequest:
        record = _record(number, line)
        custom_id = self._check(number, record)
        body = record["body"]
        kind = EditBody if self._endpoint == EDITS else RequestBody
        try:
            checked = kind.model_validate(body)
            self._check_body(checked)
        except ValidationError as error:
            # A picture in Base64 is not repeated.
            found = first_problem(error, show_value=False)
            problem = RowProblem(found.message, f"body.{found.field}" if found.field else "body")
        except InvalidInputError as error:
            problem = RowProblem(error.problem, f"body.{error.field}")
        else:
            return OpenAIRequest(line=number, custom_id=custom_id, body=checked)
        prompt = body.get("prompt") if isinstance(body, dict) else None
        shown = prompt if isinstance(prompt, str) else ""
        return OpenAIRequest(line=number, custom_id=custom_id, body=None, problem=problem, shown=shown)

    def _check(self, number: int, record: dict[str, Any]) -> str:
        """Returns the id of a request; raises `InvalidInputError` if the line is none."""

        def refuse(key: str, problem: str) -> InvalidInputError:
            return InvalidInputError(INPUT, f"line {number}, column {key!r}: {problem}")

        for key in sorted(_KEYS - record.keys()):
            raise refuse(key, "is missing")
        for key in record.keys() - _KEYS:
            raise refuse(printable(key)[:80], "there is no such key")
        custom_id, url = record["custom_id"], record["url"]
        if not isinstance(custom_id, str) or not custom_id.strip() or len(custom_id) > MAX_ID_LENGTH:
            raise refuse("custom_id", f"must be a text of 1 to {MAX_ID_LENGTH} characters")
        try:
            check_text(custom_id, "custom_id")
        except InvalidInputError as error:
            raise refuse("custom_id", error.problem) from None
        if record["method"] != "POST":
            raise refuse("method", "must be POST")
        wanted = ENDPOINTS if self._endpoint is None else (self._endpoint,)
        if url not in wanted:
            raise refuse("url", f"must be {' or '.join(wanted)}, the same in all lines")
        self._endpoint = url
        return custom_id

    def _check_body(self, body: RequestBody) -> None:
        options = self._options
        if body.model not in (None, options.model):
            raise InvalidInputError(
                "model", f"must be {options.model}, which draws this batch; make a batch for each model"
            )
        if body.size not in (None, "auto", options.size):
            raise InvalidInputError("size", f"must be {options.size} or auto, which {options.model} draws")
        file_quality(body.file_format, body.output_compression)

    def _fields(self, request: OpenAIRequest) -> dict[str, Any]:
        body = request.body
        assert body is not None
        n = body.n or DEFAULT_COUNT
        candidates = body.candidates
        if candidates is None:
            candidates = candidates_of(
                body.quality, n, self._defaults.default_candidates, self._defaults.max_candidates
            )
        return {
            "id": request.custom_id,
            "prompt": body.prompt,
            **body.drawing_values(),
            "n": n,
            "candidates": candidates,
        }


def data_url_content(url: str, field: str) -> bytes:
    """Returns the file that a URL holds (`data:image/png;base64,...`).

    Args:
        url: the URL.
        field: what errors name.

    Raises:
        InvalidInputError: it is no such URL, or not Base64.
    """
    head, comma, content = url.partition(",")
    if not head.startswith(_DATA) or not comma or not head.endswith(";base64"):
        raise InvalidInputError(field, "must be a URL like data:image/png;base64,...")
    try:
        return b64decode(content, validate=True)
    except ValueError:
        raise InvalidInputError(field, "is not Base64") from None


def first_request(file: BinaryIO) -> tuple[str, str | None]:
    """Returns the endpoint and the model of the first request of an input, to which all others must be alike.

    Raises:
        InvalidInputError: there is none, or its line is no request.
    """
    lines = Lines(file, MAX_LINE)
    for line in lines:
        if line.isspace():
            continue
        record = _record(lines.number, line)
        url, body = record.get("url"), record.get("body")
        if url not in ENDPOINTS:
            raise InvalidInputError(
                INPUT, f"line {lines.number}, column 'url': must be {' or '.join(ENDPOINTS)}"
            )
        model = body.get("model") if isinstance(body, dict) else None
        return url, model if isinstance(model, str) else None
    raise InvalidInputError(INPUT, "has no requests; give one at least")


def _record(number: int, line: bytes) -> dict[str, Any]:
    """Returns the object in a line; raises `InvalidInputError` if there is none."""
    record = read_object(line, MAX_LINE)
    if isinstance(record, RowProblem):
        raise InvalidInputError(INPUT, f"line {number}: {record.problem}")
    return record
