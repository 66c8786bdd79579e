"""The answers of OpenAI's Batch API: a line for each request, in the file of answers or in that of errors."""

import io
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, Final, Literal

from PIL import Image

from smalti.batches.openai.quality import quality_name
from smalti.batches.openai.requests import OpenAIRequest, RequestBody
from smalti.batches.prompts import POLICY_PROBLEM, PromptResult
from smalti.batches.tars import TarPicture, read_tar
from smalti.errors import DamagedObjectError
from smalti.pictures import lossy_bytes

OpenTar = Callable[[str], BinaryIO]
"""Opens a tar by its name, such as "00000.tar"."""
MissingCode = Literal["batch_cancelled", "batch_expired"]
_MISSING: Final[dict[MissingCode, str]] = {
    "batch_cancelled": "The batch was cancelled before this request was carried out.",
    "batch_expired": "This request could not be carried out before the batch expired.",
}

_PROBLEM: Final = re.compile(r"column '(?:body\.)?([^']*)': (.*)", re.DOTALL)
"""The problem of an invalid row that names its column."""


@dataclass(frozen=True, kw_only=True)
class AnswerContext:
    """What all answers of a batch have in common."""

    batch: str
    """The id of the batch."""
    created: int
    """When it was accepted, in seconds since 1970."""
    size: str
    """The size of the pictures, such as "256x256"."""
    missing: MissingCode = "batch_cancelled"
    """Why requests have no result, if some have none."""


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """Lines that were written."""

    completed: int
    """In the file of answers."""
    failed: int
    """In the file of errors."""


def write_answers(
    requests: Iterable[OpenAIRequest],
    results: Iterable[PromptResult],
    open_tar: OpenTar,
    answers: BinaryIO,
    errors: BinaryIO,
    context: AnswerContext,
) -> AnswerCounts:
    """Writes the answers to requests, as a stream: memory does not grow with the batch.

    Args:
        requests: the requests of the input, in its order: `OpenAIReader.requests`.
        results: what became of them, in the order of their rows; rows may be missing if the batch was ended.
        open_tar: opens the tars that the results name; their pictures are PNG files.
        answers: gets a line for each request that was drawn.
        errors: gets a line for each other one.
        context: what all answers have in common.

    Raises:
        DamagedObjectError: a tar does not have the pictures of a result, or a result has no request.
    """
    left = iter(results)
    result = next(left, None)
    counts = {"completed": 0, "failed": 0}
    with _Pictures(open_tar) as pictures:
        for row, request in enumerate(requests):
            found = result if result is not None and result.row == row else None
            if found is not None:
                result = next(left, None)
            if found is not None and found.state == "drawn":
                line, file, count = _answer(request, found, pictures.of(found), context), answers, "completed"
            else:
                line, file, count = _error(request, found, row, context), errors, "failed"
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            counts[count] += 1
    if result is not None:
        raise DamagedObjectError("results", f"row {result.row} is out of order, or has no request")
    return AnswerCounts(**counts)


class _Pictures(ExitStack):
    """The pictures of results in the order of the tars, each of which is read once."""

    def __init__(self, open_tar: OpenTar) -> None:
        super().__init__()
        self._open_tar = open_tar
        self._name: str | None = None
        self._stream: Iterator[TarPicture] = iter(())

    def of(self, result: PromptResult) -> list[TarPicture]:
        """Returns the pictures of a result, best first."""
        if result.tar is None:
            return []
        if result.tar != self._name:
            self.close()
            self._name = result.tar
            self._stream = read_tar(result.tar, self.enter_context(self._open_tar(result.tar)))
        found = [next(self._stream, None) for _ in result.pictures]
        pictures = [picture for picture in found if picture is not None]
        if [picture.key for picture in pictures] != [picture.key for picture in result.pictures]:
            raise DamagedObjectError(result.tar, f"does not have the pictures of row {result.row}")
        return pictures


def _answer(
    request: OpenAIRequest, result: PromptResult, pictures: list[TarPicture], context: AnswerContext
) -> dict[str, Any]:
    body = request.body
    if body is None:
        raise DamagedObjectError("results", f"row {result.row} is drawn, but its request cannot be used")
    request_id = _request_id(context, result.row)
    revised = {} if result.effective_prompt is None else {"revised_prompt": result.effective_prompt}
    response = {
        "created": context.created,
        "data": [
            {"b64_json": b64encode(_file(picture.content, body)).decode(), **revised} for picture in pictures
        ],
        "background": "opaque",
        "output_format": body.file_format,
        "quality": quality_name(body.quality),
        "size": context.size,
        "id": request_id,
        "seed": str(result.seed),
    }
    if identifier := body.safety_identifier or body.user:
        response["safety_identifier"] = identifier
    return _line(request, request_id, HTTPStatus.OK, response)


def _error(
    request: OpenAIRequest, result: PromptResult | None, row: int, context: AnswerContext
) -> dict[str, Any]:
    request_id = _request_id(context, row)
    if result is None:
        error = {"code": context.missing, "message": _MISSING[context.missing]}
        return {"id": request_id, "custom_id": request.custom_id, "response": None, "error": error}
    problem = result.problem or "the prompt could not be drawn"
    found = _PROBLEM.fullmatch(problem)
    code = "invalid_value" if result.state == "invalid" else "failed"
    if problem.startswith(POLICY_PROBLEM):
        code = "content_policy_violation"
    is_failure = code == "failed"
    body = {
        "error": {
            "message": found[2] if found else problem,
            "type": "server_error" if is_failure else "invalid_request_error",
            "param": found[1] if found else None,
            "code": code,
        }
    }
    status = HTTPStatus.INTERNAL_SERVER_ERROR if is_failure else HTTPStatus.BAD_REQUEST
    return _line(request, request_id, status, body)


def _line(
    request: OpenAIRequest, request_id: str, status: HTTPStatus, body: dict[str, Any]
) -> dict[str, Any]:
    response = {"status_code": status.value, "request_id": request_id, "body": body}
    return {"id": request_id, "custom_id": request.custom_id, "response": response, "error": None}


def _request_id(context: AnswerContext, row: int) -> str:
    return f"batch_req_{context.batch}_{row}"


def _file(content: bytes, body: RequestBody) -> bytes:
    """Returns the file of a picture in the format that was asked for; PNG files stay as they are."""
    if body.output_format in (None, "png"):
        return content
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return lossy_bytes(
            image.convert("RGB"), "webp" if body.output_format == "webp" else "jpeg", body.file_quality
        )
