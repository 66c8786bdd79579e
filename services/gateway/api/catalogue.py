"""Description of the model for clients: sizes, limits, and vocabulary."""

from google.protobuf.duration_pb2 import Duration

from smalti.messages import MAX_PROMPT_LENGTH
from smalti.registry.spec import ModelSpec
from smalti.service.model import model_card
from smalti.services.gateway.settings import GatewaySettings
from smalti.v1 import model_pb2


def describe(spec: ModelSpec, settings: GatewaySettings) -> model_pb2.Model:
    """Returns the description of the model, with limits and vocabulary.

    Raises:
        ModelError: a file of the model is invalid.
    """
    message = model_card(spec)
    message.default = True
    # The decoder service encodes initial images.
    message.encodes_images = message.encodes_images and settings.decoder is not None
    if not settings.refiner:
        message.ClearField("refiner")
        message.enlarges = False
    message.limits.CopyFrom(_limits(settings))
    return message


def without_words(model: model_pb2.Model) -> model_pb2.Model:
    """Returns a copy of the description without the vocabulary, as in lists of models."""
    message = model_pb2.Model()
    message.CopyFrom(model)
    message.ClearField("vocabulary")
    return message


def _limits(settings: GatewaySettings) -> model_pb2.Limits:
    return model_pb2.Limits(
        prompt_characters=MAX_PROMPT_LENGTH,
        candidates=settings.candidates,
        image_bytes=settings.image_bytes,
        labels=settings.labels,
        time_limit=_duration(settings.time_limit),
        default_time_limit=_duration(settings.default_time_limit),
        retention=_duration(settings.retention),
        default_retention=_duration(settings.default_retention),
        open_jobs=settings.open_jobs,
    )


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
