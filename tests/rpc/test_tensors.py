"""Conversion of arrays, encodings, tokens and sampling parameters to messages and back, and what is refused."""

import ml_dtypes
import numpy as np
import pytest

from smalti.engines.encoding import Encoding
from smalti.errors import InvalidInputError, ModelMismatchError, ModelNotFoundError
from smalti.parameters import Priority, SamplingParameters
from smalti.rpc import conversion
from smalti.rpc.tensors import to_array, to_tensor
from smalti.text.rewording import Rewording
from smalti.v1 import encoder_pb2, sampling_pb2, tensor_pb2
from smalti.v1.model_pb2 import ModelReference
from smalti.v1.prompt_pb2 import PromptReading
from smalti.v1.tensor_pb2 import Tensor
from smalti.v1.tokens_pb2 import ImageTokens

LOADED = ModelReference(name="tiny", revision="sha256:1")
REWORDING = Rewording("a cat", unknown=("hippo",), left_out=("dog",), notice="something is lost")
WIDTH = 4


@pytest.mark.parametrize("name", ["float32", "float16", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_array_round_trips(name: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 7).reshape(shape).astype(name)
    back = to_array(Tensor.FromString(to_tensor(array).SerializeToString()), "field")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    back[...] = 1  # Fails if the array shares memory with the message.


def test_tensor_has_the_documented_layout() -> None:
    tensor = to_tensor(np.array([[1, 2], [3, 258]], ">i4").T)
    assert tensor.data_type == tensor_pb2.DATA_TYPE_INT32
    assert list(tensor.shape) == [2, 2]
    assert tensor.data == bytes([1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0])


def test_bfloat16_becomes_float32_without_loss() -> None:
    values = np.array([1.0, -2.5, 3.140625, np.inf], ml_dtypes.bfloat16)
    tensor = to_tensor(values)
    assert tensor.data_type == tensor_pb2.DATA_TYPE_BFLOAT16
    assert len(tensor.data) == 8
    back = to_array(tensor, "field")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values.astype(np.float32))


def test_unsupported_element_type_is_refused() -> None:
    with pytest.raises(TypeError, match="no element type complex64"):
        to_tensor(np.zeros(1, np.complex64))


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(shape=[1], data=b"\0" * 4), "f.data_type"),
        (Tensor(data_type=99, shape=[1], data=b"\0" * 4), "f.data_type"),  # type: ignore[arg-type]
        (Tensor(data_type=tensor_pb2.DATA_TYPE_INT32, shape=[1], data=b"\0" * 4), "f.data_type"),
        (Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=b"\0" * 4), "f.shape"),
        (Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1], data=b"\0" * 4), "f.shape"),
        (Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2], data=b"\0" * 7), "f.data"),
        (Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2**62], data=b"\0" * 8), "f.data"),
    ],
)
def test_invalid_tensor_is_refused(tensor: Tensor, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        to_array(tensor, "f", types=("float32",), axes=1)
    assert caught.value.field == field


def test_too_many_axes_are_refused() -> None:
    tensor = Tensor(data_type=tensor_pb2.DATA_TYPE_UINT8, shape=[1] * 9, data=b"\0")
    with pytest.raises(InvalidInputError, match="at most 8"):
        to_array(tensor, "f")


def encoding(positions: int = 3) -> Encoding:
    states = np.linspace(-1, 1, positions * WIDTH, dtype=np.float32).reshape(positions, WIDTH)
    mask = np.ones(positions, np.int64)
    mask[-1] = 0
    return Encoding(states, mask, cut=True)


def test_encoding_round_trips() -> None:
    message = conversion.encoding_message(encoding(), LOADED, REWORDING)
    back = conversion.encoding_of(message, ModelReference(name="alias", revision="sha256:1"), WIDTH)
    np.testing.assert_array_equal(back.states, encoding().states)
    np.testing.assert_array_equal(back.mask, encoding().mask)
    assert back.cut
    assert message.reading == PromptReading(
        drawn="a cat",
        cut=True,
        unknown_words=["hippo"],
        left_out_words=["dog"],
        notice="something is lost",
        text_tokens=int(encoding().mask.sum()),
    )


def changed(**parts: Tensor | ModelReference) -> encoder_pb2.Encoding:
    message = conversion.encoding_message(encoding(), LOADED, REWORDING)
    for name, part in parts.items():
        getattr(message, name).CopyFrom(part)
    return message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (changed(model=ModelReference(name="tiny")), "encoding.model.revision"),
        (changed(states=to_tensor(np.zeros((3, WIDTH + 1), np.float32))), "encoding.states.shape"),
        (changed(states=to_tensor(np.zeros((3, WIDTH), np.int32))), "encoding.states.data_type"),
        (changed(states=to_tensor(np.full((3, WIDTH), np.nan, np.float32))), "encoding.states"),
        (changed(mask=to_tensor(np.ones(2, np.int32))), "encoding.mask.shape"),
        (changed(mask=to_tensor(np.full(3, 2, np.int32))), "encoding.mask"),
        (changed(mask=to_tensor(np.zeros(3, np.int32))), "encoding.mask"),
        (encoder_pb2.Encoding(model=LOADED), "encoding.states.data_type"),
    ],
)
def test_invalid_encoding_is_refused(message: encoder_pb2.Encoding, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        conversion.encoding_of(message, LOADED, WIDTH)
    assert caught.value.field == field


def test_encoding_of_another_model_is_refused() -> None:
    other = ModelReference(name="tiny", revision="sha256:2")
    with pytest.raises(ModelMismatchError, match="sha256:1, but tiny sha256:2 is loaded"):
        conversion.encoding_of(conversion.encoding_message(encoding(), LOADED, REWORDING), other, WIDTH)


def test_requested_model_must_be_loaded() -> None:
    for asked in (ModelReference(), ModelReference(name="tiny"), ModelReference(revision="sha256:1"), LOADED):
        conversion.check_asked_model(asked, LOADED)
    for asked, name in (
        (ModelReference(name="mega"), "mega"),
        (ModelReference(name="tiny", revision="sha256:2"), "tiny sha256:2"),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            conversion.check_asked_model(asked, LOADED)
        assert caught.value.name == name


def test_omitted_sampling_parameters_get_the_model_defaults() -> None:
    defaults = SamplingParameters(guidance_scale=7.5, top_k=12)
    asked = sampling_pb2.SamplingParameters(temperature=0.0, top_p=0.9)
    sampling = conversion.sampling_of(asked, defaults)
    assert sampling == SamplingParameters(guidance_scale=7.5, top_k=12, temperature=0, top_p=0.9)
    assert conversion.sampling_of(conversion.sampling_message(sampling), SamplingParameters()) == sampling


def test_sampling_out_of_range_names_the_field() -> None:
    asked = sampling_pb2.SamplingParameters(top_p=0.0)
    with pytest.raises(InvalidInputError, match=r"^parameters\.sampling\.top_p: "):
        conversion.sampling_of(asked, SamplingParameters(), "parameters.sampling")


def test_tokens_round_trip() -> None:
    tokens = np.array([[0, 1, 9], [2, 3, 4]], np.int32)
    messages = [conversion.tokens_message(row) for row in tokens]
    np.testing.assert_array_equal(conversion.tokens_of(messages, 3, 10, field="pictures"), tokens)
    assert conversion.tokens_of([], 3, 10, field="pictures").shape == (0, 3)
    assert conversion.given_tokens(ImageTokens(tokens=[5, 6]), 3, 10, field="given") == (5, 6)


@pytest.mark.parametrize(
    ("tokens", "field"),
    [
        ([0, 1], "pictures[1].tokens"),
        ([0, 1, 10], "pictures[1].tokens[2]"),
        ([0, -1, 0], "pictures[1].tokens[1]"),
    ],
)
def test_invalid_tokens_are_refused(tokens: list[int], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        conversion.tokens_of(
            [ImageTokens(tokens=[0] * 3), ImageTokens(tokens=tokens)], 3, 10, field="pictures"
        )
    assert caught.value.field == field


def test_given_tokens_must_be_fewer_than_a_picture() -> None:
    with pytest.raises(InvalidInputError, match="must be fewer than"):
        conversion.given_tokens(ImageTokens(tokens=[0, 0, 0]), 3, 10, field="given")


def test_priorities_round_trip() -> None:
    for priority in Priority:
        assert conversion.priority_of(conversion.priority_number(priority)) == priority
    assert conversion.priority_of(sampling_pb2.PRIORITY_UNSPECIFIED) == Priority.INTERACTIVE
    with pytest.raises(InvalidInputError, match="priority: unknown priority 9"):
        conversion.priority_of(9)
