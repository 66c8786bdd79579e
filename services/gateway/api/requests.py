"""The contract's requests, checked: every field that cannot be used is named by its path."""

import hashlib
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from smalti.errors import InvalidInputError
from smalti.messages import MAX_CANDIDATES, MAX_PROMPT_LENGTH
from smalti.parameters import check_prompt, check_seed
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import check_asked_model, priority_of, sampling_of
from smalti.rpc.errors import within
from smalti.service.model import model_reference
from smalti.services.gateway.api.conversion import STATES
from smalti.services.gateway.jobs.repository import Conditions, Position
from smalti.services.gateway.jobs.spec import JobSpec
from smalti.services.gateway.settings import GatewaySettings
from smalti.v1 import image_pb2, job_pb2

DEFAULT_PAGE, MAX_PAGE_SIZE = 50, 1000
MIN_TIME_LIMIT, MIN_RETENTION = 1.0, 60.0
LAST_FIRST_CANDIDATE: Final = MAX_CANDIDATES - 1024
MAX_VALUE_LENGTH: Final = 256

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")
_LABEL_KEY = re.compile(r"[a-z0-9_\-./]{1,63}")
_STATES = {number: state for state, number in STATES.items()}


def check_request_id(request_id: str) -> str | None:
    """Returns the request_id, None where there is none; raises `InvalidInputError` when it is no UUID."""
    if request_id and not _UUID.fullmatch(request_id):
        raise InvalidInputError(
            "request_id", f"{request_id[:60]!r} is no UUID of version 4, such as uuid4 makes"
        )
    return request_id or None


def content_hash(request: image_pb2.CreateImagesRequest) -> str:
    """Returns the hash of a request's content, its request_id left out."""
    content = image_pb2.CreateImagesRequest()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def order_of(request: image_pb2.CreateImagesRequest, spec: ModelSpec, settings: GatewaySettings) -> JobSpec:
    """Returns the order that a request makes; that of its initial image is `keep_rows` alone.

    Raises:
        InvalidInputError: a field cannot be used; names it by its path.
        ModelNotFoundError: it asks for another model.
    """
    folder = spec.folder
    parameters = request.parameters
    check_asked_model(parameters.model, model_reference(folder.name, folder.revision))
    with within("parameters"):
        prompt = _prompt(parameters.prompt)
        candidates = _number(parameters, "candidates", 1, settings.candidates)
        n = _number(parameters, "n", 1, candidates or settings.candidates)
        first = _number(parameters, "first_candidate", 0, LAST_FIRST_CANDIDATE)
        seed = check_seed(parameters.seed if parameters.HasField("seed") else None)
        sampling = sampling_of(parameters.sampling, folder.sampling)
        keep_rows = _keep_rows(parameters, spec)
    return JobSpec(
        prompt=prompt,
        seed=seed,
        sampling=sampling,
        time_limit=_seconds(
            request, "time_limit", MIN_TIME_LIMIT, settings.time_limit, settings.default_time_limit
        ),
        retention=_seconds(
            request, "retention", MIN_RETENTION, settings.retention, settings.default_retention
        ),
        n=n,
        candidates=candidates,
        first_candidate=first or 0,
        keep_rows=keep_rows,
        priority=priority_of(request.priority),
        labels=_labels(request, settings.labels),
    )


def page_size(asked: int) -> int:
    """Returns the size of a page; raises `InvalidInputError` when it is negative."""
    if asked < 0:
        raise InvalidInputError("page_size", f"{asked} is negative")
    return min(asked or DEFAULT_PAGE, MAX_PAGE_SIZE)


def conditions_of(request: image_pb2.ListJobsRequest) -> Conditions:
    """Returns which jobs a list is of; raises `InvalidInputError`."""
    states = []
    for place, number in enumerate(request.states):
        if number not in _STATES:
            raise InvalidInputError(f"states[{place}]", f"{number} is none of the states of a job")
        states.append(_STATES[number])
    return Conditions(
        states=tuple(dict.fromkeys(states)),
        labels=dict(request.labels),
        created_since=_microseconds(request, "created_since"),
        created_before=_microseconds(request, "created_before"),
    )


def page_token(request: image_pb2.ListJobsRequest, last: Position) -> str:
    """Returns the token of the page behind a job; good for requests with the same conditions."""
    content = json.dumps([last.created, last.id])
    return urlsafe_b64encode(f"{_fingerprint(request, content)}{content}".encode()).decode().rstrip("=")


def position_of(request: image_pb2.ListJobsRequest) -> Position | None:
    """Returns where a page begins; None for the first.

    Raises:
        InvalidInputError: the token is damaged, or that of a request with other conditions.
    """
    if not request.page_token:
        return None
    try:
        token = request.page_token.encode("ascii")
        text = urlsafe_b64decode(token + b"=" * (-len(token) % 4)).decode()
        fingerprint, content = text[:_FINGERPRINT], text[_FINGERPRINT:]
        created, job_id = json.loads(content)
        if fingerprint == _fingerprint(request, content):
            return Position(int(created), str(job_id))
    except (ValueError, TypeError):
        pass
    raise InvalidInputError(
        "page_token", "is damaged, or was given for other conditions; begin with the first page"
    )


def check_view(view: int) -> None:
    """Raises `InvalidInputError` for a view that the contract does not have."""
    if view not in image_pb2.JobView.values():
        raise InvalidInputError("view", f"{view} is none of the contract's views")


_FINGERPRINT: Final = 16


def _fingerprint(request: image_pb2.ListJobsRequest, content: str) -> str:
    conditions = image_pb2.ListJobsRequest()
    conditions.CopyFrom(request)
    for field in ("page_size", "page_token", "view"):
        conditions.ClearField(field)
    digest = hashlib.sha256(conditions.SerializeToString(deterministic=True) + b"\0" + content.encode())
    return digest.hexdigest()[:_FINGERPRINT]


def _prompt(prompt: str) -> str:
    prompt = check_prompt(prompt)
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInputError("prompt", f"has {len(prompt)} characters; the most is {MAX_PROMPT_LENGTH}")
    if "\0" in prompt:
        raise InvalidInputError("prompt", "has a character that is none, U+0000")
    return prompt


def _number(parameters: job_pb2.ImageParameters, name: str, least: int, most: int) -> int | None:
    if not parameters.HasField(name):  # type: ignore[arg-type]
        return None
    value = int(getattr(parameters, name))
    if not least <= value <= most:
        raise InvalidInputError(name, f"{value} is not between {least} and {most}")
    return value


def _keep_rows(parameters: job_pb2.ImageParameters, spec: ModelSpec) -> int:
    if not parameters.HasField("initial_image"):
        return 0
    image = parameters.initial_image
    with within("initial_image"):
        if image.WhichOneof("source") is None:
            raise InvalidInputError("source", "is missing; give an image, tokens, or a picture of a job")
        if not 1 <= image.keep_rows < spec.side:
            raise InvalidInputError("keep_rows", f"{image.keep_rows} is not between 1 and {spec.side - 1}")
    return image.keep_rows


def _seconds(request: Message, name: str, least: float, most: float, default: float) -> float:
    if not request.HasField(name):
        return default
    duration: Duration = getattr(request, name)
    seconds = duration.seconds + duration.nanos / 1e9
    if not least <= seconds <= most:
        raise InvalidInputError(name, f"{seconds:g} s is not between {least:g} s and {most:g} s")
    return seconds


def _labels(request: image_pb2.CreateImagesRequest, most: int) -> dict[str, str]:
    labels = dict(request.labels)
    if len(labels) > most:
        raise InvalidInputError("labels", f"there are {len(labels)}; the most is {most}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidInputError(
                "labels", f"the key {key[:70]!r} is not 1 to 63 of a-z, 0-9, '_', '-', '.' and '/'"
            )
        if len(value) > MAX_VALUE_LENGTH or "\0" in value:
            raise InvalidInputError(
                f"labels.{key}", f"a value has at most {MAX_VALUE_LENGTH} characters, and no U+0000"
            )
    return labels


def _microseconds(request: image_pb2.ListJobsRequest, name: str) -> int | None:
    if not request.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(request, name)
    if not 0 <= time.nanos < 1_000_000_000 or not -(2**40) < time.seconds < 2**40:
        raise InvalidInputError(name, "is no time")
    # Rounded up: a job of the same microsecond is not before this time, and one of it is not since a later part of it.
    return time.seconds * 1_000_000 + -(-time.nanos // 1000)
