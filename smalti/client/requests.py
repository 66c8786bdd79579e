"""Arguments of the client's methods as requests of the gRPC contract."""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from smalti.errors import InvalidInputError
from smalti.files import load_content
from smalti.parameters import Refinement
from smalti.rpc.conversion import refinement_message
from smalti.rpc.errors import translated
from smalti.settings import settings
from smalti.v1.batch_pb2 import CreateBatchRequest
from smalti.v1.image_pb2 import JOB_VIEW_BASIC, JOB_VIEW_FULL, CreateImagesRequest, ListJobsRequest
from smalti.v1.job_pb2 import ImageParameters, InitialImage, JobState, PictureReference
from smalti.v1.sampling_pb2 import Priority, SamplingParameters
from smalti.v1.tokens_pb2 import ImageTokens

DEFAULT_SERVER: Final = "127.0.0.1:50050"
"""The address of the gateway that `smalti up` starts."""

Fields: TypeAlias = Mapping[str, tuple[Message, str]]
"""Options by name: the message and the field of each."""


class RequestOptions(TypedDict, total=False):
    """Options that jobs and batches share; one that is missing or None takes the default of the model or the gateway.

    The ranges are those of the contract (`ImageParameters`, `SamplingParameters`).
    """

    n: int | None
    """Number of pictures to return, the best of the candidates."""
    candidates: int | None
    """Number of pictures to generate. The default is the model's number, or more while the system is idle."""
    seed: int | None
    """Equal seeds give equal pictures. The default is random for a job; for a batch it is 0, from which
    each prompt gets a seed of its own."""
    guidance_scale: float | None
    """`unconditional + scale * (conditional - unconditional)`; 1 turns guidance off."""
    temperature: float | None
    """Divides the logits; 0 always takes the most probable token."""
    top_k: int | None
    """Sample among the k most probable tokens; 0 for no limit."""
    top_p: float | None
    """Sample among the most probable tokens that together reach this probability; 1 for no limit."""
    layout_share: float | None
    """Share of the tokens, the first ones, to which the next two apply; 0 for none."""
    layout_temperature: float | None
    """The temperature of these tokens."""
    layout_guidance_scale: float | None
    """The guidance scale of these tokens."""
    vary: bool | None
    """Whether candidates differ in what the prompt leaves open, such as the style."""
    diversity: float | None
    """Weight of difference from each other when pictures are chosen; 0 chooses by score alone."""
    refine: Refinement | bool | None
    """Draws the details of the chosen pictures again; True for the defaults. The model must have a refiner."""
    upscale: int | None
    """Enlarges the chosen pictures by 1, 2 or 4. The default is the refiner's own factor with `refine`, else 1."""
    model: str | None
    """Name of the model."""
    revision: str | None
    """Revision of the model, with which everything is drawn then; None for any that can be drawn now."""
    time_limit: float | None
    """Time in seconds after which the job or batch expires; waiting counts."""
    retention: float | None
    """Time in seconds for which the job or batch and its pictures are kept after it has ended."""
    labels: Mapping[str, str] | None
    """Labels of the user's choice, by which `list` can filter."""
    webhook: str | None
    """An https URL to which a signed notice is sent at the end; see `smalti.client.verify_webhook`. The
    default is that of the tenant, if it has one."""
    webhook_prompt: bool | None
    """Whether the notice contains the prompt; the default is as the tenant has it."""
    request_id: str | None
    """A UUID that makes the call safe to repeat: the same id and content return the same job or batch. The
    default is new."""


class GenerateOptions(RequestOptions, total=False):
    """Options of a job, with those of `RequestOptions`.

    The ranges are those of the contract (`ImageParameters`, `SamplingParameters`, `CreateImagesRequest`).
    """

    first_candidate: int | None
    """Index of the first candidate: with the same seed, 16 generates sixteen more."""
    initial_image: "bytes | Path | ImageTokens | PictureReference | None"
    """A picture of which a part is kept: the path or content of a file, tokens, or a picture of an earlier job. One of
    the next four says which part."""
    keep_rows: int | None
    """Number of rows of tiles to keep, from the top."""
    mask: bytes | Path | None
    """The path or content of a picture file as large as the initial image: tiles with a fully transparent pixel are
    drawn anew, all others are kept."""
    redrawn_tiles: Sequence[int] | None
    """The positions of the tiles to draw anew, row by row from 0, in ascending order; all others are kept."""
    strength: float | None
    """Share of the tiles to draw anew, between 0 and 1; each candidate draws other ones anew."""
    priority: str | None
    """"interactive", or "batch" for work that uses what other jobs leave free."""


class ListOptions(TypedDict, total=False):
    """Filters and page size of a list of jobs; one that is missing matches every job."""

    states: Sequence[str]
    """Only jobs in one of these states, such as "running"."""
    labels: Mapping[str, str]
    """Only jobs that have all of these labels."""
    created_since: datetime | None
    """Only jobs that were created at this time or later."""
    created_before: datetime | None
    """Only jobs that were created before this time."""
    with_pictures: bool
    """Include the pictures of each job."""
    page_size: int
    """Number of jobs to request at a time; 0 for the server's default."""


# Fields of the contract whose argument has another name.
_ARGUMENTS: Final = {
    "parameters.model.name": "model",
    "parameters.model.revision": "revision",
    "parameters.initial_image.image": "initial_image",
    "parameters.initial_image.tokens.tokens": "initial_image",
    **{
        f"parameters.initial_image.{name}": name
        for name in ("keep_rows", "mask", "redrawn_tiles", "strength")
    },
    "webhook.url": "webhook",
    "webhook.include_prompt": "webhook_prompt",
    "parameters.refine.strength": "refine",
    "parameters.refine.steps": "refine",
}


def server_address(server: str | None) -> str:
    """Returns the address of the gateway: the argument, the setting, or the default."""
    return server or settings().server or DEFAULT_SERVER


def key_metadata(key: str | None) -> tuple[tuple[str, str | bytes], ...] | None:
    """Returns the metadata of calls with a key: the argument, or the setting; None without one.

    Raises:
        InvalidInputError: the key has characters that no key has.
    """
    field = "key"
    if key is None:
        secret = settings().key
        key, field = (secret.get_secret_value() if secret else ""), "SMALTI_KEY"
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InvalidInputError(field, "must be a key or a token, without spaces")
    return (("authorization", f"Bearer {key}"),)


def create_request(prompt: str, options: GenerateOptions) -> CreateImagesRequest:
    """Returns the request for a job. It has a request_id, so that it is safe to repeat.

    Raises:
        InvalidInputError: an argument has the wrong type; names it. The gateway checks the ranges.
        TypeError: there is no such option.
    """
    check_options(options, GenerateOptions)
    request = CreateImagesRequest()
    image = request.parameters.initial_image
    fields = {
        **request_fields(request),
        "prompt": (request.parameters, "prompt"),
        "first_candidate": (request.parameters, "first_candidate"),
        "keep_rows": (image, "keep_rows"),
        "strength": (image, "strength"),
    }
    given: dict[str, Any] = {"prompt": prompt, "request_id": str(uuid.uuid4())}
    given |= {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        match name:
            case "initial_image":
                fill(name, value, partial(_set_initial_image, image))
            case "mask":
                fill(name, value, partial(_set_mask, image))
            case "redrawn_tiles":
                fill(name, value, image.redrawn_tiles.extend)
            case "priority":
                request.priority = enum_value(Priority, "PRIORITY_", name, value)
            case _:
                fill_field(request, fields, name, value)
    return request


def check_options(options: Mapping[str, Any], kind: Any) -> None:
    """Checks that a `TypedDict` has no other options.

    Raises:
        TypeError: there is no such option.
    """
    unknown = options.keys() - kind.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected argument {sorted(unknown)[0]!r}")


def request_fields(request: CreateImagesRequest | CreateBatchRequest) -> Fields:
    """Returns where the options are that requests for a job and for a batch share, by their names."""
    parameters = request.parameters
    return {
        "request_id": (request, "request_id"),
        "model": (parameters.model, "name"),
        "revision": (parameters.model, "revision"),
        "webhook": (request.webhook, "url"),
        "webhook_prompt": (request.webhook, "include_prompt"),
        **{name: (parameters, name) for name in ("n", "candidates", "seed", "vary", "diversity", "upscale")},
        **{name: (parameters.sampling, name) for name in SamplingParameters.DESCRIPTOR.fields_by_name},
    }


def fill_field(
    request: CreateImagesRequest | CreateBatchRequest, fields: Fields, name: str, value: Any
) -> None:
    """Sets an option that requests for a job and for a batch share.

    Raises:
        InvalidInputError: the value has the wrong type.
    """
    match name:
        case "time_limit" | "retention":
            fill(name, value, partial(set_seconds, getattr(request, name)))
        case "refine":
            fill(name, value, partial(_set_refinement, request.parameters))
        case "labels":
            fill(name, value, request.labels.update)
        case _:
            fill(name, value, partial(setattr, *fields[name]))


def list_request(
    *,
    states: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    created_since: datetime | None = None,
    created_before: datetime | None = None,
    with_pictures: bool = False,
    page_size: int = 0,
) -> ListJobsRequest:
    """Returns the request for a page of jobs; the arguments are those of `ListOptions`.

    Raises:
        InvalidInputError: an argument has the wrong type, or names an unknown state.
    """
    request = ListJobsRequest(view=JOB_VIEW_FULL if with_pictures else JOB_VIEW_BASIC)
    request.states.extend(enum_value(JobState, "JOB_STATE_", "states", state) for state in states)
    fill("labels", labels or {}, request.labels.update)
    fill("page_size", page_size, partial(setattr, request, "page_size"))
    for name, time in (("created_since", created_since), ("created_before", created_before)):
        if time is not None:
            fill(name, time.astimezone(), getattr(request, name).FromDatetime)
    return request


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns gRPC errors into those of `smalti.errors`, and fields of the contract into arguments of the client.

    Raises:
        SmaltiError: the call failed.
    """
    try:
        with translated():
            yield
    except InvalidInputError as error:
        raise InvalidInputError(argument_name(error.field), error.problem) from error


def argument_name(field: str) -> str:
    """Returns the client's argument for a field of the contract."""
    return _ARGUMENTS.get(field) or field.removeprefix("parameters.").removeprefix("sampling.")


def fill(name: str, value: Any, put: Callable[[Any], None]) -> None:
    """Puts a value into a message.

    Raises:
        InvalidInputError: the message does not take it; names the option.
    """
    try:
        put(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(name, f"{value!r:.80} cannot be used: {error}") from None


def set_seconds(duration: Duration, seconds: float) -> None:
    """Sets a duration of a message."""
    duration.FromNanoseconds(round(seconds * 1e9))


def _set_refinement(parameters: ImageParameters, refine: Any) -> None:
    match refine:
        case False:
            pass
        case True:
            parameters.refine.SetInParent()
        case Refinement():
            parameters.refine.CopyFrom(refinement_message(refine))
        case _:
            raise TypeError("must be a Refinement, or True or False")


def _set_initial_image(source: InitialImage, image: Any) -> None:
    match image:
        case Path() | bytes():
            source.image = load_content(image, "initial_image")
        case ImageTokens():
            source.tokens.CopyFrom(image)
        case PictureReference():
            source.picture.CopyFrom(image)
        case _:
            raise TypeError("must be a Path, the bytes of a file, ImageTokens, or a PictureReference")


def _set_mask(source: InitialImage, mask: Any) -> None:
    if not isinstance(mask, Path | bytes):
        raise TypeError("must be a Path or the bytes of a file")
    source.mask = load_content(mask, "mask")
    if not source.mask:
        raise InvalidInputError("mask", "is an empty file")


def enum_value(enum: Any, prefix: str, field: str, name: str) -> Any:
    """Returns the value of an enum by its short name: "batch" is PRIORITY_BATCH."""
    names = {key.removeprefix(prefix).lower(): key for key in enum.keys()[1:]}
    if name not in names:
        raise InvalidInputError(field, f"must be one of {', '.join(names)}, not {name!r}")
    return enum.Value(names[name])
