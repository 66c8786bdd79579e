"""What several services say in the contract's words: encodings, sampling parameters, tokens, priorities."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.errors import InvalidInputError, ModelMismatchError, ModelNotFoundError
from smalti.parameters import Priority, SamplingParameters
from smalti.rpc.errors import within
from smalti.rpc.tensors import to_array, to_tensor
from smalti.text.rewording import Rewording
from smalti.v1 import encoder_pb2, model_pb2, prompt_pb2, sampling_pb2
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
    """Returns sampling parameters as a message with all fields set."""
    return sampling_pb2.SamplingParameters(**sampling.model_dump())


def sampling_of(
    message: sampling_pb2.SamplingParameters, defaults: SamplingParameters, field: str = "sampling"
) -> SamplingParameters:
    """Returns the defaults with what a message sets in their place.

    Args:
        message: the message.
        defaults: the model's.
        field: the message's path in the request, for errors.

    Raises:
        InvalidInputError: a value is out of its range; names the field by its path.
    """
    given = {descriptor.name: value for descriptor, value in message.ListFields()}
    with within(field):
        return SamplingParameters.check(**{**defaults.model_dump(), **given})


def encoding_message(
    encoding: Encoding, model: model_pb2.ModelReference, rewording: Rewording
) -> encoder_pb2.Encoding:
    """Returns an encoding as a message.

    Args:
        encoding: the encoding.
        model: the model that made it.
        rewording: what was encoded for the prompt.
    """
    return encoder_pb2.Encoding(
        model=model,
        states=to_tensor(encoding.states),
        mask=to_tensor(encoding.mask.astype(np.int32)),
        reading=reading_message(rewording, encoding.cut),
    )


def reading_message(rewording: Rewording, cut: bool) -> prompt_pb2.PromptReading:
    """Returns how a prompt was read as a message.

    Args:
        rewording: what is drawn for it.
        cut: whether that is longer than the model reads.
    """
    return prompt_pb2.PromptReading(
        drawn=rewording.prompt,
        cut=cut,
        unknown_words=rewording.unknown,
        left_out_words=rewording.left_out,
        notice=rewording.notice,
    )


def encoding_of(
    message: encoder_pb2.Encoding, loaded: model_pb2.ModelReference, width: int, *, field: str = "encoding"
) -> Encoding:
    """Returns a message's encoding.

    Args:
        message: the message.
        loaded: the model that is to read it.
        width: the length of the hidden states' last axis, `d_model`.
        field: the message's path in the request, for errors.

    Raises:
        ModelMismatchError: it was made by another model.
        InvalidInputError: states and mask are not what they should be; names the field by its path.
    """
    check_same_model(message.model, loaded, f"{field}.model")
    states = to_array(message.states, f"{field}.states", types=_FLOATS, axes=2)
    mask = to_array(message.mask, f"{field}.mask", types=("int32",), axes=1)
    if states.shape[1] != width:
        raise InvalidInputError(
            f"{field}.states.shape", f"its last axis is {states.shape[1]} long; {width} is expected"
        )
    if len(states) != len(mask) or not len(mask):
        raise InvalidInputError(
            f"{field}.mask.shape",
            f"has {len(mask)} places, the states have {len(states)}; they must be as many",
        )
    if not np.isin(mask, (0, 1)).all() or not mask.any():
        raise InvalidInputError(f"{field}.mask", "must be of 0 and 1, at least one of them 1")
    if not np.isfinite(states).all():
        raise InvalidInputError(f"{field}.states", "holds what is not a finite number")
    return Encoding(states.astype(np.float32), mask, message.reading.cut)


def check_asked_model(asked: model_pb2.ModelReference, loaded: model_pb2.ModelReference) -> None:
    """Checks the model that a request asks for; an empty name or revision is any.

    Raises:
        ModelNotFoundError: it is not the one that is loaded.
    """
    if asked.name not in ("", loaded.name) or asked.revision not in ("", loaded.revision):
        wanted = f"{asked.name or loaded.name} {asked.revision}".rstrip()
        raise ModelNotFoundError(f"{wanted} is not loaded here; {loaded.name} {loaded.revision} is", wanted)


def check_same_model(made_by: model_pb2.ModelReference, loaded: model_pb2.ModelReference, field: str) -> None:
    """Checks the model that a part of a request was made by.

    Raises:
        ModelMismatchError: it is not the one that is loaded. The revision decides; a model may have several names.
        InvalidInputError: it is not said; names the field.
    """
    if not made_by.revision:
        raise InvalidInputError(f"{field}.revision", "is missing; an encoding is sent as it was received")
    if made_by.revision != loaded.revision:
        raise ModelMismatchError(
            f"{field} is {made_by.name} {made_by.revision}; {loaded.name} {loaded.revision} is loaded"
        )


def tokens_message(tokens: Int[np.ndarray, " tokens"]) -> ImageTokens:
    """Returns the tokens of a picture as a message."""
    return ImageTokens(tokens=tokens.tolist())


def tokens_of(
    pictures: Sequence[ImageTokens], length: int, codebook_size: int, *, field: str
) -> Int[np.ndarray, "pictures tokens"]:
    """Returns the tokens of whole pictures.

    Args:
        pictures: the messages.
        length: tokens of a picture.
        codebook_size: tokens are below it.
        field: the messages' path in the request, for errors.

    Raises:
        InvalidInputError: a picture has another number of tokens, or one out of range; names it by its path.
    """
    rows = [
        given_tokens(picture, length, codebook_size, field=f"{field}[{place}]", whole=True)
        for place, picture in enumerate(pictures)
    ]
    return np.array(rows, np.int32).reshape(len(rows), length)


def given_tokens(
    message: ImageTokens, length: int, codebook_size: int, *, field: str, whole: bool = False
) -> tuple[int, ...]:
    """Returns the tokens of a message: of a whole picture, or else of less than one, from its beginning.

    Raises:
        InvalidInputError: they are too many or too few, or one is out of range; names the field by its path.
    """
    tokens = tuple(message.tokens)
    if whole and len(tokens) != length:
        raise InvalidInputError(f"{field}.tokens", f"has {len(tokens)}; a picture has {length}")
    if not whole and len(tokens) >= length:
        raise InvalidInputError(
            f"{field}.tokens", f"has {len(tokens)}, which leaves nothing to draw; a picture has {length}"
        )
    wrong = next((place for place, token in enumerate(tokens) if not 0 <= token < codebook_size), None)
    if wrong is not None:
        raise InvalidInputError(
            f"{field}.tokens[{wrong}]", f"{tokens[wrong]} is not between 0 and {codebook_size - 1}"
        )
    return tokens


def priority_of(number: int, field: str = "priority") -> Priority:
    """Returns a priority of the contract; raises `InvalidInputError` for a number that it does not have."""
    for known, priority in _PRIORITIES.items():
        if known == number:
            return priority
    raise InvalidInputError(field, f"{number} is none of the contract's priorities")


def priority_number(priority: Priority) -> sampling_pb2.Priority.ValueType:
    """Returns a priority's number in the contract."""
    return _PRIORITY_NUMBERS[priority]
