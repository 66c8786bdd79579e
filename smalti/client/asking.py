"""What a client asks for, as requests of the contract."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from smalti.errors import InvalidInputError
from smalti.rpc.errors import translated
from smalti.settings import settings
from smalti.v1.image_pb2 import JOB_VIEW_BASIC, JOB_VIEW_FULL, CreateImagesRequest, ListJobsRequest
from smalti.v1.job_pb2 import InitialImage, JobState, PictureReference
from smalti.v1.sampling_pb2 import Priority, SamplingParameters
from smalti.v1.tokens_pb2 import ImageTokens

DEFAULT_SERVER = "127.0.0.1:50050"
"""Where `smalti up` has its gateway."""


class GenerateOptions(TypedDict, total=False):
    """What may be asked of a drawing; what is left out, or None, is the model's or the gateway's own.

    The ranges are those of the contract (`ImageParameters`, `SamplingParameters`, `CreateImagesRequest`).
    """

    n: int | None
    """How many pictures are returned, the best of the candidates."""
    candidates: int | None
    """How many are drawn, exactly; left out, it is the model's number, or more while the system is idle."""
    first_candidate: int | None
    """The index of the first candidate: with the same seed 16 draws sixteen more."""
    seed: int | None
    """The same seed draws the same pictures; left out, it is a random one."""
    guidance_scale: float | None
    """`unconditional + guidance_scale * (conditional - unconditional)`; 1 is no guidance."""
    temperature: float | None
    """Divides the logits; 0 always takes the most probable tile."""
    top_k: int | None
    """Draw among the k most probable tiles; 0 is no limit."""
    top_p: float | None
    """Draw among the most probable tiles that together have this probability; 1 is no limit."""
    model: str | None
    """The model's name."""
    revision: str | None
    """The model's revision: refused where the gateway has another one."""
    initial_image: "bytes | Path | ImageTokens | PictureReference | None"
    """A picture whose upper rows are kept: a file, or its content; tokens; or a picture of an earlier job."""
    keep_rows: int | None
    """How many rows of tiles of it are kept."""
    priority: str | None
    """"interactive", or "batch" for work that takes what others leave."""
    time_limit: float | None
    """The seconds after which the job expires, waiting included."""
    retention: float | None
    """The seconds for which the job and its pictures are kept after it has ended."""
    labels: Mapping[str, str] | None
    """The user's own, for `list`."""
    request_id: str | None
    """A UUID; the same one with the same content gets the same job. Left out, it is a new one."""


# The fields of the contract that are called otherwise here.
_OWN_NAMES = {
    "parameters.model.name": "model",
    "parameters.model.revision": "revision",
    "parameters.initial_image.image": "initial_image",
    "parameters.initial_image.keep_rows": "keep_rows",
}


def server_address(server: str | None) -> str:
    """Returns where the gateway is: as given, as the settings say, or where `smalti up` has it."""
    return server or settings().server or DEFAULT_SERVER


def create_request(prompt: str, asked: GenerateOptions) -> CreateImagesRequest:
    """Returns the request for a job; with a request_id, so that it may be repeated.

    Raises:
        InvalidInputError: an argument cannot be sent at all; names it. Ranges are the gateway's to check.
    """
    unknown = asked.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no argument {sorted(unknown)[0]!r}")
    request = CreateImagesRequest()
    parameters = request.parameters
    places: dict[str, tuple[Message, str]] = {
        "prompt": (parameters, "prompt"),
        "request_id": (request, "request_id"),
        "model": (parameters.model, "name"),
        "revision": (parameters.model, "revision"),
        "keep_rows": (parameters.initial_image, "keep_rows"),
        **{name: (parameters, name) for name in ("n", "candidates", "first_candidate", "seed")},
        **{name: (parameters.sampling, name) for name in SamplingParameters.DESCRIPTOR.fields_by_name},
    }
    given: dict[str, Any] = {"prompt": prompt, "request_id": str(uuid.uuid4())}
    given |= {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        match name:
            case "initial_image":
                _fill(name, value, partial(_set_initial_image, parameters.initial_image))
            case "time_limit" | "retention":
                _fill(name, value, partial(_set_seconds, getattr(request, name)))
            case "priority":
                request.priority = _number(Priority, "PRIORITY_", name, value)
            case "labels":
                _fill(name, value, request.labels.update)
            case _:
                _fill(name, value, partial(setattr, *places[name]))
    return request


def list_request(
    *,
    states: Sequence[str],
    labels: Mapping[str, str],
    created_since: datetime | None,
    created_before: datetime | None,
    with_pictures: bool,
    page_size: int,
) -> ListJobsRequest:
    """Returns the request for a page of jobs; see `Client.list`."""
    request = ListJobsRequest(view=JOB_VIEW_FULL if with_pictures else JOB_VIEW_BASIC)
    request.states.extend(_number(JobState, "JOB_STATE_", "states", state) for state in states)
    _fill("labels", labels, request.labels.update)
    _fill("page_size", page_size, partial(setattr, request, "page_size"))
    for name, time in (("created_since", created_since), ("created_before", created_before)):
        if time is not None:
            _fill(name, time.astimezone(), getattr(request, name).FromDatetime)
    return request


@contextmanager
def answered() -> Iterator[None]:
    """Raises our exceptions in place of gRPC's, with the names of our arguments in place of the contract's fields.

    Raises:
        SmaltiError: the call failed.
    """
    try:
        with translated():
            yield
    except InvalidInputError as error:
        raise InvalidInputError(own_name(error.field), error.problem) from error


def own_name(field: str) -> str:
    """Returns what a field of the contract is called among our arguments."""
    return _OWN_NAMES.get(field) or field.removeprefix("parameters.").removeprefix("sampling.")


def _fill(name: str, value: Any, put: Callable[[Any], None]) -> None:
    try:
        put(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(name, f"{value!r:.80} cannot be used: {error}") from None


def _set_seconds(duration: Duration, seconds: float) -> None:
    duration.FromNanoseconds(round(seconds * 1e9))


def _set_initial_image(source: InitialImage, image: Any) -> None:
    match image:
        case Path():
            try:
                source.image = image.read_bytes()
            except OSError as error:
                raise InvalidInputError(
                    "initial_image", f"{image}: cannot be read ({error.strerror})"
                ) from None
        case bytes():
            source.image = image
        case ImageTokens():
            source.tokens.CopyFrom(image)
        case PictureReference():
            source.picture.CopyFrom(image)
        case _:
            raise TypeError("a path, the bytes of a file, ImageTokens, or a PictureReference is expected")


def _number(enum: Any, prefix: str, field: str, name: str) -> Any:
    """Returns the number of an enum's value by its short name: "batch" is PRIORITY_BATCH."""
    names = {key.removeprefix(prefix).lower(): key for key in enum.keys()[1:]}
    if name not in names:
        raise InvalidInputError(field, f"{name!r} is none of {', '.join(names)}")
    return enum.Value(names[name])
