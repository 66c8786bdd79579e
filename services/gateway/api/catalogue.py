"""Description of the model for clients: sizes, limits, and vocabulary."""

from google.protobuf.duration_pb2 import Duration

from smalti.messages import MAX_PROMPT_LENGTH
from smalti.registry.spec import ModelSpec
from smalti.service.model import model_message
from smalti.services.gateway.settings import GatewaySettings
from smalti.text.vocabulary import Words, load_words
from smalti.v1 import model_pb2


def describe(spec: ModelSpec, settings: GatewaySettings) -> model_pb2.Model:
    """Returns the description of the model, with limits and vocabulary.

    Raises:
        ModelError: a file of the model is invalid.
    """
    message = model_message(spec)
    message.default = True
    # The decoder service encodes initial images.
    message.encodes_images = message.encodes_images and settings.decoder is not None
    if not settings.refiner:
        message.ClearField("refiner")
        message.enlarges = False
    message.limits.CopyFrom(_limits(settings))
    message.vocabulary.CopyFrom(_vocabulary(load_words(spec.folder.words_file)))
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


def _vocabulary(words: Words | None) -> model_pb2.Vocabulary:
    if words is None:
        return model_pb2.Vocabulary(closed=False)
    groups = {
        "things": words.things,
        "colours": words.colours,
        "backgrounds": words.backgrounds,
        "patterns": words.patterns,
        "scenes": words.scenes,
        "styles": words.styles,
        "sizes": words.sizes,
        "counts": words.counts,
        "places": words.places,
        "poses": words.poses,
        "relations": words.relations,
        "grammar": words.grammar,
    }
    return model_pb2.Vocabulary(
        closed=True,
        groups=[
            model_pb2.WordGroup(name=name, words=sorted(known)) for name, known in groups.items() if known
        ],
    )


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
