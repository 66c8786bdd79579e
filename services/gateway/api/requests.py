"""Checks requests and converts them; errors name the invalid field by its path."""

import hashlib
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from smalti.errors import InvalidInputError, NotSupportedError, SmaltiError
from smalti.messages import MAX_CANDIDATES, MAX_PROMPT_LENGTH
from smalti.parameters import (
    KEPT,
    SecondPass,
    check_diversity,
    check_keep_rows,
    check_kept,
    check_prompt,
    check_seed,
    check_strength,
)
from smalti.rpc.conversion import check_refiner, priority_of, sampling_of, second_pass_of
from smalti.rpc.errors import within
from smalti.services.gateway.api.catalogue import can_refine
from smalti.services.gateway.api.conversion import STATES
from smalti.services.gateway.database.tables import MAX_ID_LENGTH, PageCursor
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.services.gateway.jobs.spec import JobSpec
from smalti.services.gateway.models import ModelCard, RevisionState
from smalti.services.gateway.settings import GatewaySettings
from smalti.v1 import image_pb2, job_pb2

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 1000
MIN_TIME_LIMIT, MIN_RETENTION = 1.0, 60.0
"""Minimum time limit and retention of a job, in seconds."""
MAX_FIRST_CANDIDATE: Final = MAX_CANDIDATES - 1024
MAX_VALUE_LENGTH: Final = 256

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")
_LABEL_KEY = re.compile(r"[a-z0-9_\-./]{1,63}")
_FINGERPRINT_LENGTH: Final = 16
_STATES = {number: state for state, number in STATES.items()}


def check_request_id(request_id: str) -> str | None:
    """Returns the request_id in lower case, as UUIDs are compared; None if it is empty.

    Raises:
        InvalidInputError: it is not a UUID.
    """
    if request_id and not _UUID.fullmatch(request_id):
        raise InvalidInputError(
            "request_id", f"must be a UUID of version 4, such as uuid4() returns, got {request_id[:60]!r}"
        )
    return request_id.lower() or None


def required_id(field: str, text: str, missing: Callable[[str], SmaltiError]) -> str:
    """Returns an id of a request; raises `InvalidInputError` if it is not set, and else as `check_id`."""
    if not text:
        raise InvalidInputError(field, "must be set")
    return check_id(text, missing)


def check_id(text: str, missing: Callable[[str], SmaltiError]) -> str:
    """Returns an id; raises what `missing` makes of one that nothing can have."""
    if not text or len(text) > MAX_ID_LENGTH or "\0" in text:
        raise missing(text[:MAX_ID_LENGTH].replace("\0", ""))
    return text


def content_hash(request: Message) -> str:
    """Returns the hash of a request's content, without its request_id."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def parse_job_spec(
    request: image_pb2.CreateImagesRequest, state: RevisionState, settings: GatewaySettings
) -> JobSpec:
    """Returns the job that a request asks for, without the tokens of its initial image.

    Args:
        request: the request.
        state: the revision that the job is bound to.
        settings: the limits.

    Raises:
        InvalidInputError: a field is invalid; names it by its path.
    """
    card, parameters = state.card, request.parameters
    with within("parameters"):
        prompt = _prompt(parameters.prompt)
        candidates = number_of(parameters, "candidates", 1, settings.candidates)
        n = number_of(parameters, "n", 1, candidates or settings.candidates)
        first = number_of(parameters, "first_candidate", 0, MAX_FIRST_CANDIDATE)
        seed = check_seed(parameters.seed if parameters.HasField("seed") else None)
        sampling = sampling_of(parameters.sampling, card.sampling)
        vary = parameters.vary if parameters.HasField("vary") else card.message.default_vary
        diversity = check_diversity(
            parameters.diversity if parameters.HasField("diversity") else card.message.default_diversity
        )
        strength = _check_initial_image(parameters, card)
        second_pass = second_pass_for(parameters, state, settings)
    return JobSpec(
        card=card,
        pinned=bool(parameters.model.revision),
        prompt=prompt,
        seed=seed,
        sampling=sampling,
        time_limit=seconds_of(request, "time_limit", MIN_TIME_LIMIT, settings.time_limit)
        or settings.default_time_limit,
        retention=seconds_of(request, "retention", MIN_RETENTION, settings.retention),
        n=n,
        candidates=candidates,
        first_candidate=first or 0,
        strength=strength,
        vary=vary,
        diversity=diversity,
        second_pass=second_pass,
        priority=priority_of(request.priority),
        labels=labels_of(request, settings.labels),
    )


def page_size(asked: int) -> int:
    """Returns the size of a page; raises `InvalidInputError` if the request's is negative."""
    if asked < 0:
        raise InvalidInputError("page_size", f"must not be negative, got {asked}")
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def parse_job_filter(request: image_pb2.ListJobsRequest, settings: GatewaySettings) -> JobFilter:
    """Returns the filter of a request for a list; raises `InvalidInputError`."""
    if len(request.states) > len(_STATES):
        raise InvalidInputError(
            "states", f"must have at most {len(_STATES)} entries, got {len(request.states)}"
        )
    states = []
    for position, number in enumerate(request.states):
        if number not in _STATES:
            raise InvalidInputError(
                f"states[{position}]", f"must be a JobState other than UNSPECIFIED, got {number}"
            )
        states.append(_STATES[number])
    return JobFilter(
        states=tuple(dict.fromkeys(states)),
        labels=labels_of(request, settings.labels),
        created_since=_microseconds(request, "created_since"),
        created_before=_microseconds(request, "created_before"),
    )


def page_token(request: Message, last: PageCursor) -> str:
    """Returns the token of the page after a job, or what else is listed; valid for requests with the same filter."""
    content = json.dumps([last.created, last.id])
    return urlsafe_b64encode(f"{_fingerprint(request, content)}{content}".encode()).decode().rstrip("=")


def parse_page_token(request: Any) -> PageCursor | None:
    """Returns the last job of the previous page, or what else is listed; None for the first page.

    Raises:
        InvalidInputError: the token is damaged, or belongs to a request with another filter.
    """
    if not request.page_token:
        return None
    try:
        token = request.page_token.encode("ascii")
        text = urlsafe_b64decode(token + b"=" * (-len(token) % 4)).decode()
        fingerprint, content = text[:_FINGERPRINT_LENGTH], text[_FINGERPRINT_LENGTH:]
        created, job_id = json.loads(content)
        if fingerprint == _fingerprint(request, content):
            cursor = PageCursor(int(created), str(job_id))
            if abs(cursor.created) < 2**63 and "\0" not in cursor.id:
                return cursor
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidInputError(
        "page_token", "is damaged or belongs to a request with other filters; start with the first page"
    )


def check_view(view: int) -> None:
    """Raises `InvalidInputError` for an unknown view."""
    if view not in image_pb2.JobView.values():
        raise InvalidInputError("view", f"must be JOB_VIEW_BASIC or JOB_VIEW_FULL, got {view}")


def seconds_of(request: Message, name: str, minimum: float, maximum: float) -> float | None:
    """Returns a duration of a request; None if it has none. Raises `InvalidInputError` for one out of range."""
    if not request.HasField(name):
        return None
    duration: Duration = getattr(request, name)
    seconds = duration.seconds + duration.nanos / 1e9
    if not minimum <= seconds <= maximum:
        raise InvalidInputError(name, f"must be between {minimum:g} s and {maximum:g} s, got {seconds:g} s")
    return seconds


def _fingerprint(request: Message, content: str) -> str:
    filters = type(request)()
    filters.CopyFrom(request)
    for field in {"page_size", "page_token", "after_file_id", "view"} & set(
        request.DESCRIPTOR.fields_by_name
    ):
        filters.ClearField(field)
    digest = hashlib.sha256(filters.SerializeToString(deterministic=True) + b"\0" + content.encode())
    return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def _prompt(prompt: str) -> str:
    prompt = check_prompt(prompt)
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInputError(
            "prompt", f"must have at most {MAX_PROMPT_LENGTH} characters, got {len(prompt)}"
        )
    return prompt


def number_of(parameters: job_pb2.ImageParameters, name: str, minimum: int, maximum: int) -> int | None:
    """Returns a number of the parameters; None if it is not set. Raises `InvalidInputError` if it is out of range."""
    if not parameters.HasField(name):  # type: ignore[arg-type]
        return None
    value = int(getattr(parameters, name))
    if not minimum <= value <= maximum:
        raise InvalidInputError(name, f"must be between {minimum} and {maximum}, got {value}")
    return value


def _check_initial_image(parameters: job_pb2.ImageParameters, card: ModelCard) -> float | None:
    """Checks what is kept of an initial image; returns its strength, if that is what it has."""
    if not parameters.HasField("initial_image"):
        return None
    image = parameters.initial_image
    with within("initial_image"):
        if image.WhichOneof("source") is None:
            raise InvalidInputError("source", "must be set; give image, tokens, or picture")
        check_kept([field.name for field, _ in image.ListFields() if field.name in KEPT])
        if image.HasField("strength"):
            return check_strength(image.strength)
        if image.keep_rows:
            check_keep_rows(image.keep_rows, card.side)
    return None


def second_pass_for(
    parameters: job_pb2.ImageParameters, state: RevisionState, settings: GatewaySettings
) -> SecondPass | None:
    """Returns the second pass that parameters ask for; None if they ask for none.

    Raises:
        InvalidInputError: a value is out of range.
        NotSupportedError: the model has no refiner, or none can be reached.
    """
    second_pass = second_pass_of(parameters, state.card.trained_upscale)
    check_refiner(parameters, state.card.refiner_revision)
    if second_pass is not None and not can_refine(state, settings):
        raise NotSupportedError("this gateway has no refiner; leave out refine and upscale")
    return second_pass


def labels_of(request: Any, maximum: int) -> dict[str, str]:
    """Returns the labels of a request; raises `InvalidInputError`."""
    labels = dict(request.labels)
    if len(labels) > maximum:
        raise InvalidInputError("labels", f"must have at most {maximum} entries, got {len(labels)}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidInputError(
                "labels",
                f"a key must be 1 to 63 characters of a-z, 0-9, '_', '-', '.' and '/', got {key[:70]!r}",
            )
        if len(value) > MAX_VALUE_LENGTH or "\0" in value:
            raise InvalidInputError(
                f"labels.{key}",
                f"must have at most {MAX_VALUE_LENGTH} characters, and no NUL character (U+0000)",
            )
    return labels


def _microseconds(request: image_pb2.ListJobsRequest, name: str) -> int | None:
    if not request.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(request, name)
    # Rounded up: a job created within the same microsecond, but earlier, must not count as created since then.
    return time.seconds * 1_000_000 + -(-time.nanos // 1000)
