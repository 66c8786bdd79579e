"""Messages of the gateway as bodies of our own API, and the other way round."""

from typing import Any, Final

from starlette.requests import Request

from smalti.client import GenerateOptions
from smalti.rpc.errors import error_of_status
from smalti.services.web.context import WebContext
from smalti.services.web.failures import failure_of
from smalti.services.web.jobs import LABEL
from smalti.services.web.native.schema import JobRequest, PictureSource
from smalti.services.web.pictures import PictureLink
from smalti.v1 import job_pb2
from smalti.v1.job_pb2 import InitialImage, Job, JobState, Picture, PictureReference
from smalti.v1.model_pb2 import Model
from smalti.v1.sampling_pb2 import PRIORITY_BATCH
from smalti.v1.tokens_pb2 import ImageTokens

_MODEL_FIELDS: Final = (
    *("description", "licence", "default", "image_width", "image_height", "rows", "columns"),
    *("default_n", "default_candidates"),
)


def options_of(request: JobRequest) -> GenerateOptions:
    """Returns a request as options of a job."""
    given = request.model_dump(exclude={"prompt", "initial_image"}, exclude_none=True)
    options: GenerateOptions = {**given}  # type: ignore[typeddict-item]
    if source := request.initial_image:
        options["initial_image"] = _source(source)
        options["keep_rows"] = source.keep_rows
        options["redrawn_tiles"] = source.redrawn_tiles
        options["strength"] = source.strength
    return options


def _source(source: PictureSource) -> PictureReference | ImageTokens:
    if source.tokens is not None:
        return ImageTokens(tokens=source.tokens)
    # One of the two is given, which the schema has checked.
    return PictureReference(job_id=source.job_id or "", candidate=source.candidate or 0)


def job_object(request: Request, context: WebContext, job: Job, *, full: bool = True) -> dict[str, Any]:
    """Returns a job as JSON; with `full`, with its pictures."""
    found: dict[str, Any] = {
        "id": job.id,
        "version": job.version,
        "state": state_name(job.state),
        "request_id": job.request_id,
        "parameters": _parameters(job),
        "priority": "batch" if job.priority == PRIORITY_BATCH else "interactive",
        "labels": {key: value for key, value in job.labels.items() if key != LABEL},
        "progress": {each.name: getattr(job.progress, each.name) for each in job.progress.DESCRIPTOR.fields},
    }
    if job.HasField("prompt_reading"):
        found["reading"] = _reading(job)
    if job.HasField("jobs_ahead"):
        found["jobs_ahead"] = job.jobs_ahead
    if full and job.state == job_pb2.JOB_STATE_SUCCEEDED:
        found["pictures"] = [_picture(request, context, job, picture) for picture in job.pictures]
    if job.HasField("error"):
        found["error"] = failure_of(error_of_status(job.error)).problem
    times = {"created": "create_time", "started": "start_time", "ended": "end_time"}
    times |= {"expires": "expire_time", "deleted": "delete_time"}
    return found | {
        name: getattr(job, field).ToJsonString()
        for name, field in times.items()
        if job.HasField(field)  # type: ignore[arg-type]
    }


def model_object(model: Model, *, words: bool = False) -> dict[str, Any]:
    """Returns a model as JSON; with `words`, with its vocabulary."""
    found: dict[str, Any] = {
        "name": model.reference.name,
        "revision": model.reference.revision,
        **{name: getattr(model, name) for name in _MODEL_FIELDS},
        "prompt_characters": model.limits.prompt_characters,
        "max_candidates": model.limits.candidates,
    }
    if words:
        groups = {group.name: list(group.words) for group in model.vocabulary.groups}
        found["vocabulary"] = {"closed": model.vocabulary.closed, "groups": groups}
    return found


def state_name(state: int) -> str:
    """Returns the name of a state, such as "queued"."""
    return JobState.Name(state).removeprefix("JOB_STATE_").lower()  # type: ignore[arg-type]


def _parameters(job: Job) -> dict[str, Any]:
    parameters = job.parameters
    sampling = parameters.sampling
    found = {
        "prompt": parameters.prompt,
        "model": parameters.model.name,
        "revision": parameters.model.revision,
        "n": parameters.n,
        "candidates": parameters.candidates,
        "first_candidate": parameters.first_candidate,
        # A string: JavaScript reads numbers exactly only up to 2^53.
        "seed": str(parameters.seed),
        **{each.name: getattr(sampling, each.name) for each in sampling.DESCRIPTOR.fields},
        "vary": parameters.vary,
        "diversity": parameters.diversity,
    }
    if parameters.HasField("initial_image"):
        found["initial_image"] = _initial_image(parameters.initial_image)
    return found


def _initial_image(image: InitialImage) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": list(image.tokens.tokens)}
    if image.HasField("strength"):
        found["strength"] = image.strength
    elif image.redrawn_tiles:
        found["redrawn_tiles"] = list(image.redrawn_tiles)
    else:
        found["keep_rows"] = image.keep_rows
    return found


def _reading(job: Job) -> dict[str, Any]:
    reading = job.prompt_reading
    return {
        "effective_prompt": reading.drawn,
        "cut": reading.cut,
        "unknown_words": list(reading.unknown_words),
        "left_out_words": list(reading.left_out_words),
        "notice": reading.notice,
        "text_tokens": reading.text_tokens,
    }


def _picture(request: Request, context: WebContext, job: Job, picture: Picture) -> dict[str, Any]:
    link = PictureLink(job_id=job.id, candidate=picture.candidate, expires=job.delete_time.seconds)
    names = ("candidate", "rank", "score", "width", "height", "media_type", "size_bytes", "sha256", "wording")
    return {**{name: getattr(picture, name) for name in names}, "url": context.links.url(request, link)}
