"""Checks requests for batches and converts them; errors name the invalid field by its path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from smalti.batches import (
    COLUMNS,
    DEFAULT_SHARD_PROMPTS,
    MAX_IN_SHARD,
    BatchDefaults,
    InputFormat,
    PictureFormat,
    format_of,
)
from smalti.errors import InvalidInputError
from smalti.parameters import check_diversity, check_seed
from smalti.rpc.conversion import sampling_of
from smalti.rpc.errors import within
from smalti.services.gateway.api.batches.conversion import FORMATS, PICTURE_FORMATS, STATES
from smalti.services.gateway.api.requests import labels_of, number_of, second_pass_for, seconds_of
from smalti.services.gateway.batches import BatchFilter, BatchParameters, BatchSource, BatchSpec
from smalti.services.gateway.database.tables import DEFAULT_TENANT
from smalti.services.gateway.models import RevisionState
from smalti.services.gateway.settings import GatewaySettings
from smalti.storage import check_key
from smalti.v1 import batch_pb2, job_pb2

INPUTS: Final = "inputs/"
"""The folder of the objects that callers with access to the store have written."""
HOUR, DAY = 3600.0, 24 * 3600.0
MIN_TIME_LIMIT, MAX_TIME_LIMIT, DEFAULT_TIME_LIMIT = 60.0, 90 * DAY, 30 * DAY
MIN_RETENTION, MAX_RETENTION = HOUR, 365 * DAY
MAX_NAME_LENGTH: Final = 200
MAX_RANK: Final = 100
MAX_SLOTS: Final = 2**20
_STATES = {number: state for state, number in STATES.items()}
_FORMATS: Final[Mapping[int, InputFormat]] = {number: each for each, number in FORMATS.items()}
_PICTURE_FORMATS: Final[Mapping[int, PictureFormat]] = {
    number: each for each, number in PICTURE_FORMATS.items()
}


@dataclass(frozen=True, kw_only=True)
class InputObject:
    """The object that the input of a batch is."""

    key: str
    name: str
    """The name of the file, which tells the format unless the request does."""
    sha256: str | None
    file_id: str = ""


def input_key(asked: batch_pb2.BatchInput, tenant: str) -> str:
    """Returns the key of the object that a request names; raises `InvalidInputError`."""
    with within("input"):
        key = asked.object_key
        prefix = INPUTS if tenant == DEFAULT_TENANT else f"{INPUTS}{tenant}/"
        if not key.startswith(prefix) or key == prefix:
            raise InvalidInputError("object_key", f"must begin with {prefix!r}, got {key[:80]!r}")
        try:
            return check_key(key)
        except InvalidInputError as error:
            raise InvalidInputError("object_key", error.problem) from None


def parse_batch_spec(
    request: batch_pb2.CreateBatchRequest,
    source: InputObject,
    state: RevisionState,
    settings: GatewaySettings,
) -> BatchSpec:
    """Returns the batch that a request asks for.

    Args:
        request: the request.
        source: its input.
        state: the revision that the batch is bound to.
        settings: the limits.

    Raises:
        InvalidInputError: a field is invalid; names it by its path.
    """
    parameters = request.parameters
    shard_prompts = request.shard_prompts or DEFAULT_SHARD_PROMPTS
    if not 1 <= shard_prompts <= MAX_IN_SHARD:
        raise InvalidInputError("shard_prompts", f"must be from 1 to {MAX_IN_SHARD}, got {shard_prompts}")
    for name, value, maximum in (("rank", request.rank, MAX_RANK), ("slots", request.slots, MAX_SLOTS)):
        if not 0 <= value <= maximum:
            raise InvalidInputError(name, f"must be from 0 to {maximum}, got {value}")
    if len(request.name) > MAX_NAME_LENGTH or not request.name.isprintable():
        raise InvalidInputError(
            "name", f"must have at most {MAX_NAME_LENGTH} characters, and no control characters"
        )
    with within("parameters"):
        defaults = _defaults(parameters, state, settings)
    refines = defaults.second_pass is not None and defaults.second_pass.refine is not None
    return BatchSpec(
        card=state.card,
        pinned=bool(parameters.model.revision),
        parameters=BatchParameters(
            input=_source(request.input, source),
            defaults=defaults,
            picture_format=_picture_format(request.picture_format),
            shard_prompts=shard_prompts,
            refiner=state.card.refiner_revision if refines else None,
        ),
        time_limit=seconds_of(request, "time_limit", MIN_TIME_LIMIT, MAX_TIME_LIMIT) or DEFAULT_TIME_LIMIT,
        retention=seconds_of(request, "retention", MIN_RETENTION, MAX_RETENTION),
        name=request.name,
        labels=labels_of(request, settings.labels),
        rank=request.rank,
        slots=request.slots or None,
        validate_only=request.validate_only,
    )


def parse_batch_filter(request: batch_pb2.ListBatchesRequest, settings: GatewaySettings) -> BatchFilter:
    """Returns the filter of a request for a list; raises `InvalidInputError`."""
    if len(request.states) > len(_STATES):
        raise InvalidInputError(
            "states", f"must have at most {len(_STATES)} entries, got {len(request.states)}"
        )
    for position, number in enumerate(request.states):
        if number not in _STATES:
            raise InvalidInputError(
                f"states[{position}]", f"must be a BatchState other than UNSPECIFIED, got {number}"
            )
    states = tuple(dict.fromkeys(_STATES[number] for number in request.states))
    return BatchFilter(states=states, labels=labels_of(request, settings.labels))


def _source(asked: batch_pb2.BatchInput, source: InputObject) -> BatchSource:
    with within("input"):
        for name in asked.columns:
            if name not in COLUMNS:
                raise InvalidInputError("columns", f"{name[:60]!r} is none of {', '.join(sorted(COLUMNS))}")
        if asked.format and asked.format not in _FORMATS:
            raise InvalidInputError("format", f"must be a BatchFormat, got {asked.format}")
        try:
            found = _FORMATS[asked.format] if asked.format else format_of(source.name)
        except InvalidInputError as error:
            raise InvalidInputError("format", error.problem) from None
    return BatchSource(
        object_key=source.key,
        sha256=source.sha256,
        name=PurePosixPath(source.name).name,
        file_id=source.file_id,
        format=found,
        columns=dict(asked.columns),
        ignore_columns=asked.ignore_columns,
        skip_invalid=asked.skip_invalid,
    )


def _defaults(
    parameters: job_pb2.ImageParameters, state: RevisionState, settings: GatewaySettings
) -> BatchDefaults:
    if parameters.prompt:
        raise InvalidInputError("prompt", "must not be set; the prompts of a batch are in its input")
    for name in ("first_candidate", "initial_image"):
        if parameters.HasField(name):
            raise InvalidInputError(name, "must not be set for a batch; leave it out")
    model = state.card.message
    candidates = number_of(parameters, "candidates", 1, settings.candidates)
    given_diversity = parameters.HasField("diversity")
    defaults = BatchDefaults(
        seed=check_seed(parameters.seed) if parameters.HasField("seed") else 0,
        n=number_of(parameters, "n", 1, candidates or settings.candidates),
        candidates=candidates,
        default_n=model.default_n,
        default_candidates=min(model.default_candidates, settings.candidates),
        max_candidates=settings.candidates,
        sampling=sampling_of(parameters.sampling, state.card.sampling),
        vary=parameters.vary if parameters.HasField("vary") else model.default_vary,
        diversity=check_diversity(parameters.diversity if given_diversity else model.default_diversity),
        second_pass=second_pass_for(parameters, state, settings),
    )
    defaults.counts()  # More pictures may be asked for than candidates.
    return defaults


def _picture_format(asked: int) -> PictureFormat:
    if asked == batch_pb2.PICTURE_FORMAT_UNSPECIFIED:
        return PictureFormat.PNG
    if asked not in _PICTURE_FORMATS:
        raise InvalidInputError("picture_format", f"must be a PictureFormat, got {asked}")
    return _PICTURE_FORMATS[asked]
