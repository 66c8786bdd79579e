"""Descriptions of models for clients: sizes, limits, vocabulary, and whether they can be drawn now."""

from smalti.messages import MAX_PROMPT_LENGTH
from smalti.services.gateway.api.conversion import duration
from smalti.services.gateway.models import RevisionState
from smalti.services.gateway.settings import GatewaySettings
from smalti.v1 import model_pb2


def describe(
    state: RevisionState, settings: GatewaySettings, *, is_default: bool = True, has_decoder: bool = False
) -> model_pb2.Model:
    """Returns the description of a revision, with limits and vocabulary, and whether it can be drawn now.

    Args:
        state: the revision, and its workers.
        settings: the limits.
        is_default: whether a request without a model may get it.
        has_decoder: whether a decoder can be called that encodes its initial images.
    """
    message = model_pb2.Model()
    message.CopyFrom(state.card.message)
    message.default = is_default
    message.slots = state.slots
    message.available = state.is_available
    message.encodes_images = message.encodes_images and has_decoder
    if not can_refine(state, settings):
        message.ClearField("refiner")
        message.enlarges = False
    message.limits.CopyFrom(_limits(settings))
    return message


def can_refine(state: RevisionState, settings: GatewaySettings) -> bool:
    """Returns whether the pictures of a revision can be refined and enlarged now."""
    return settings.refiner or state.refines


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
        time_limit=duration(settings.time_limit),
        default_time_limit=duration(settings.default_time_limit),
        retention=duration(settings.retention),
        default_retention=duration(settings.default_retention),
        open_jobs=settings.open_jobs,
        file_bytes=settings.file_bytes,
    )
