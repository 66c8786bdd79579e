"""Conversion of encodings, parameters, tokens, pictures and priorities to and from the messages of `smalti.v1`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.errors import InvalidInputError, ModelMismatchError, ModelNotFoundError
from smalti.parameters import (
    Priority,
    Refinement,
    SamplingParameters,
    SecondPass,
    check_second_pass,
)
from smalti.pictures import plain_png_bytes
from smalti.rpc.errors import within
from smalti.rpc.tensors import to_array, to_tensor
from smalti.text.rewording import Rewording
from smalti.v1 import (
    decoder_pb2,
    encoder_pb2,
    job_pb2,
    model_pb2,
    prompt_pb2,
    ranker_pb2,
    refiner_pb2,
    sampling_pb2,
    tensor_pb2,
)
from smalti.v1.decoder_pb2 import EncodedImage
from smalti.v1.tokens_pb2 import ImageTokens

_FLOATS = ("float32", "float16", "bfloat16")

_PRIORITIES = {
    sampling_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    sampling_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    sampling_pb2.PRIORITY_BATCH: Priority.BATCH,
}
_PRIORITY_NUMBERS = {
    Priority.INTERACTIVE: sampling_pb2.PRIORITY_INTERACTIVE,
    Priority.BATCH: sampling_pb2.PRIORITY_BATCH,
}


def sampling_message(sampling: SamplingParameters) -> sampling_pb2.SamplingParameters:
    """Returns sampling parameters as a message in which every field is set."""
    return sampling_pb2.SamplingParameters(**sampling.every_value())


def sampling_of(
    message: sampling_pb2.SamplingParameters, defaults: SamplingParameters, field: str = "sampling"
) -> SamplingParameters:
    """Returns the sampling parameters of a message; fields that it does not set have their defaults.

    Args:
        message: the message.
        defaults: the sampling parameters of the model.
        field: the message's path in the request, for errors.

    Raises:
        InvalidInputError: a value is out of range; names the field by its path.
    """
    given = {descriptor.name: value for descriptor, value in message.ListFields()}
    with within(field):
        return SamplingParameters.check(**{**defaults.every_value(), **given})


def refinement_message(refine: Refinement, revision: str | None = None) -> refiner_pb2.Refinement:
    """Returns the parameters of the refiner, and its revision if it is known, as a message."""
    return refiner_pb2.Refinement(**refine.model_dump(), revision=revision or "")


def second_pass_of(
    message: job_pb2.ImageParameters | refiner_pb2.RefineRequest, trained_upscale: int | None
) -> SecondPass | None:
    """Returns the second pass that a message asks for; None if it asks for none.

    Args:
        message: has the fields `refine` and `upscale`.
        trained_upscale: the factor that the model's refiner was trained for; None if the model has no refiner.

    Raises:
        InvalidInputError: a value is out of range; names the field by its path.
        NotSupportedError: the model has no refiner.
    """
    refine = None
    if message.HasField("refine"):
        with within("refine"):
            given = {field.name: value for field, value in message.refine.ListFields()}
            given.pop("revision", None)
            refine = Refinement.check(**given)
    upscale = message.upscale if message.HasField("upscale") else None
    return check_second_pass(refine, upscale, trained_upscale)


def check_refiner(message: job_pb2.ImageParameters | refiner_pb2.RefineRequest, revision: str | None) -> None:
    """Checks that the refiner has the revision that a message asks for, if it asks for one.

    Raises:
        ModelMismatchError: it has another revision.
    """
    asked = message.refine.revision if message.HasField("refine") else ""
    if asked and asked != revision:
        raise ModelMismatchError(f"refine.revision is {asked}, but the refiner has revision {revision}")


def encoding_message(
    encoding: Encoding, model: model_pb2.ModelReference, rewording: Rewording
) -> encoder_pb2.Encoding:
    """Returns an encoding as a message.

    Args:
        encoding: the encoding.
        model: the model that made it.
        rewording: the prompt as it was encoded.
    """
    return encoder_pb2.Encoding(
        model=model,
        states=to_tensor(encoding.states),
        mask=to_tensor(encoding.mask.astype(np.int32)),
        reading=reading_message(rewording, encoding.cut, int(encoding.mask.sum())),
    )


def features_message(features: Float[np.ndarray, "pictures features"]) -> tensor_pb2.Tensor:
    """Returns what pictures look like as a message."""
    return to_tensor(features.astype(np.float32))


def reading_message(rewording: Rewording, cut: bool, text_tokens: int = 0) -> prompt_pb2.PromptReading:
    """Returns as a message how the model reads a prompt.

    Args:
        rewording: the prompt in words that the model knows.
        cut: whether the rewording is longer than the model reads.
        text_tokens: number of text tokens that are read; 0 if it is not known.
    """
    return prompt_pb2.PromptReading(
        drawn=rewording.prompt,
        cut=cut,
        unknown_words=rewording.unknown,
        left_out_words=rewording.left_out,
        notice=rewording.notice,
        text_tokens=text_tokens,
    )


def encoding_of(
    message: encoder_pb2.Encoding, loaded: model_pb2.ModelReference, width: int, *, field: str = "encoding"
) -> Encoding:
    """Returns the encoding of a message.

    Args:
        message: the message.
        loaded: the loaded model, which must have made the encoding.
        width: the length of the last axis of the hidden states, `d_model`.
        field: the message's path in the request, for errors.

    Raises:
        ModelMismatchError: another model made the encoding.
        InvalidInputError: states or mask are invalid; names the field by its path.
    """
    check_same_model(message.model, loaded, f"{field}.model")
    states = to_array(message.states, f"{field}.states", types=_FLOATS, axes=2)
    mask = to_array(message.mask, f"{field}.mask", types=("int32",), axes=1)
    if states.shape[1] != width:
        raise InvalidInputError(
            f"{field}.states.shape", f"the last axis is {states.shape[1]} long; must be {width}"
        )
    if len(states) != len(mask) or not len(mask):
        raise InvalidInputError(
            f"{field}.mask.shape",
            f"is {len(mask)} long but the states are {len(states)} long; must be equal and positive",
        )
    if not np.isin(mask, (0, 1)).all() or not mask.any():
        raise InvalidInputError(f"{field}.mask", "must contain only 0 and 1, and at least one 1")
    if not np.isfinite(states).all():
        raise InvalidInputError(f"{field}.states", "must contain only finite numbers")
    return Encoding(states.astype(np.float32), mask, message.reading.cut)


def check_asked_model(asked: model_pb2.ModelReference, loaded: model_pb2.ModelReference) -> None:
    """Checks that the requested model is loaded; an empty name or revision matches any.

    Raises:
        ModelNotFoundError: another model is loaded.
    """
    if asked.name not in ("", loaded.name) or asked.revision not in ("", loaded.revision):
        wanted = f"{asked.name or loaded.name} {asked.revision}".rstrip()
        raise ModelNotFoundError(f"{wanted} is not loaded here; {loaded.name} {loaded.revision} is", wanted)


def check_asked_part(
    request: decoder_pb2.DecodeRequest | decoder_pb2.EncodeImagesRequest | ranker_pb2.ScoreRequest,
    loaded: model_pb2.ModelReference,
    key: str,
) -> None:
    """Checks that the files are loaded that a request needs: by their key if it has one, or else by the model.

    Args:
        request: the request.
        loaded: the loaded model.
        key: the key of the loaded files.

    Raises:
        ModelNotFoundError: others are loaded.
    """
    if not request.key:
        check_asked_model(request.model, loaded)
    elif request.key != key:
        raise ModelNotFoundError(
            f"files with the key {request.key} are not loaded here; those of {loaded.name} with {key} are",
            request.key,
        )


def check_same_model(made_by: model_pb2.ModelReference, loaded: model_pb2.ModelReference, field: str) -> None:
    """Checks that the loaded model made a part of a request.

    Raises:
        ModelMismatchError: another model made it. The revision decides, because a model may have several names.
        InvalidInputError: the revision is missing; names the field.
    """
    if not made_by.revision:
        raise InvalidInputError(f"{field}.revision", "is missing; send the encoding as it was received")
    if made_by.revision != loaded.revision:
        raise ModelMismatchError(
            f"{field} is {made_by.name} {made_by.revision}, but {loaded.name} {loaded.revision} is loaded"
        )


def tokens_message(tokens: Int[np.ndarray, " tokens"]) -> ImageTokens:
    """Returns the tokens of a picture as a message."""
    return ImageTokens(tokens=tokens.tolist())


def image_message(image: Image.Image) -> EncodedImage:
    """Returns a picture as a message with a PNG file."""
    return EncodedImage(
        data=plain_png_bytes(image), media_type="image/png", width=image.width, height=image.height
    )


def tokens_of(
    pictures: Sequence[ImageTokens], length: int, codebook_size: int, *, field: str
) -> Int[np.ndarray, "pictures tokens"]:
    """Returns the tokens of whole pictures.

    Args:
        pictures: the messages.
        length: number of tokens of a picture.
        codebook_size: tokens must be below this.
        field: the messages' path in the request, for errors.

    Raises:
        InvalidInputError: a picture has a wrong number of tokens, or one out of range; names it by its path.
    """
    rows = [
        given_tokens(picture, length, codebook_size, field=f"{field}[{position}]", whole=True)
        for position, picture in enumerate(pictures)
    ]
    return np.array(rows, np.int32).reshape(len(rows), length)


def given_tokens(
    message: ImageTokens, length: int, codebook_size: int, *, field: str, whole: bool = False
) -> tuple[int, ...]:
    """Returns the tokens of a message: of a whole picture, or of the beginning of one.

    Raises:
        InvalidInputError: there are too many or too few, or one is out of range; names the field by its path.
    """
    tokens = tuple(message.tokens)
    if whole and len(tokens) != length:
        raise InvalidInputError(f"{field}.tokens", f"has {len(tokens)} tokens; a picture has {length}")
    if not whole and len(tokens) >= length:
        raise InvalidInputError(
            f"{field}.tokens", f"has {len(tokens)} tokens; must be fewer than the {length} of a picture"
        )
    wrong = next((place for place, token in enumerate(tokens) if not 0 <= token < codebook_size), None)
    if wrong is not None:
        raise InvalidInputError(
            f"{field}.tokens[{wrong}]", f"{tokens[wrong]} is not between 0 and {codebook_size - 1}"
        )
    return tokens


def priority_of(number: int, field: str = "priority") -> Priority:
    """Returns the priority with this number in `smalti.v1`; raises `InvalidInputError` if there is none."""
    for known, priority in _PRIORITIES.items():
        if known == number:
            return priority
    raise InvalidInputError(field, f"unknown priority {number}")


def priority_number(priority: Priority) -> sampling_pb2.Priority.ValueType:
    """Returns the number of a priority in `smalti.v1`."""
    return _PRIORITY_NUMBERS[priority]
