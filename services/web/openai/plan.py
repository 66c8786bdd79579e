"""A request of the OpenAI API as options of a job."""

from dataclasses import dataclass

from smalti.batches import openai
from smalti.client import GenerateOptions
from smalti.errors import InvalidInputError
from smalti.services.web.openai.schema import GenerationRequest
from smalti.services.web.pictures import OutputFormat
from smalti.v1.model_pb2 import Model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a request is carried out, and what the answer says about it."""

    prompt: str
    options: GenerateOptions
    max_labels: int
    output_format: OutputFormat
    file_quality: int
    """Of JPEG and WebP files, from 0 to 100."""
    quality: str
    """The quality as the answer names it."""
    size: str
    as_urls: bool
    partial_images: int
    safety_identifier: str | None
    events: str
    """The beginning of the names of events."""


def make_plan(
    request: GenerationRequest,
    model: Model,
    max_seconds: float,
    source: GenerateOptions | None,
    events: str,
) -> Plan:
    """Returns the plan for a request.

    Args:
        request: the request.
        model: the model that it names, or the default one.
        max_seconds: the time limit of the job.
        source: the picture of which a part is kept, as options of the job; None without one.
        events: the beginning of the names of events.

    Raises:
        InvalidInputError: the model cannot do what is asked.
    """
    size = f"{model.image_width}x{model.image_height}"
    if request.size not in (None, "auto", size):
        raise InvalidInputError(
            "size",
            f"{model.reference.name} draws {size}; ask for that or auto, not {request.size!r:.40}",
        )
    output_format = request.output_format or OutputFormat.PNG
    if request.stream and request.response_format == "url":
        raise InvalidInputError("response_format", "must be b64_json with stream")
    if request.partial_images and not request.stream:
        raise InvalidInputError("partial_images", "needs stream")
    labels = {"user": request.user, "safety_identifier": request.safety_identifier}
    count = request.n or openai.DEFAULT_COUNT
    return Plan(
        prompt=request.prompt,
        options={
            **request.drawing_values(),  # type: ignore[typeddict-item]
            **(source or {}),
            "model": request.model,
            "n": count,
            "candidates": _candidates(request, count, model),
            "time_limit": min(max_seconds, model.limits.time_limit.ToTimedelta().total_seconds()),
            "labels": {name: value for name, value in labels.items() if value},
        },
        max_labels=model.limits.labels,
        output_format=output_format,
        file_quality=openai.file_quality(output_format, request.output_compression),
        quality=openai.quality_name(request.quality),
        size=size,
        as_urls=request.response_format == "url",
        partial_images=request.partial_images or 0,
        safety_identifier=request.safety_identifier or request.user or None,
        events=events,
    )


def _candidates(request: GenerationRequest, count: int, model: Model) -> int | None:
    """Returns the number of candidates that is asked for, or that of the quality; None lets the gateway choose."""
    if request.candidates is not None:
        return request.candidates
    # A count over the limit is refused by the gateway, which names it.
    return openai.candidates_of(request.quality, count, model.default_candidates, model.limits.candidates)
