"""The decoder's calls, in this process, and reading of pictures from outside."""

import asyncio
import io
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from harness.grpc_server import asynchronous
from harness.service import answer, called
from smalti.engines.decoder import DecoderEngine
from smalti.errors import InvalidInputError, ModelNotFoundError, NotSupportedError, OverloadedError
from smalti.messages import Stage
from smalti.pictures import MAX_FILE_BYTES, plain_png_bytes, read_image, square
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.registry.spec import ModelSpec
from smalti.rpc.server import Register
from smalti.service.compute import ComputeThread
from smalti.service.model import model_reference
from smalti.services.decoder.servicer import DecoderServicer
from smalti.v1.decoder_pb2 import DecodeRequest, EncodeImagesRequest
from smalti.v1.decoder_pb2_grpc import DecoderServiceStub, add_DecoderServiceServicer_to_server
from smalti.v1.model_pb2 import ModelReference
from smalti.v1.tokens_pb2 import ImageTokens

PICTURE = ImageTokens(tokens=range(16))


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    yield thread
    thread.close()


@pytest.fixture
def servicer(tiny: ModelFolder, pipeline: Pipeline, compute: ComputeThread) -> DecoderServicer:
    model = model_reference(tiny.name, tiny.revision)
    return DecoderServicer(engine=pipeline.decoder, compute=compute, spec=ModelSpec.load(tiny), model=model)


def register(servicer: DecoderServicer) -> Register:
    return lambda server: add_DecoderServiceServicer_to_server(servicer, server)


def file(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Returns a picture as a file. Its left half is blue; its right half is red, or transparent in mode RGBA."""
    image = Image.new(mode, (width, height), "blue")
    image.paste((0, 0, 0, 0) if mode == "RGBA" else (255, 0, 0), (width // 2, 0, width, height))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@asynchronous
async def test_bad_requests_name_their_fields(servicer: DecoderServicer) -> None:
    async with called(register(servicer)) as channel:
        stub = DecoderServiceStub(channel)
        for pictures, problem in (
            ([], r"pictures: has 0 pictures; must have 1 to 64"),
            ([PICTURE] * 65, r"pictures: has 65 pictures"),
            ([PICTURE, ImageTokens(tokens=[1])], r"pictures\[1\].tokens: has 1 tokens; a picture has 16"),
            ([ImageTokens(tokens=[64] * 16)], r"pictures\[0\].tokens\[0\]: 64 is not between 0 and 63"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.Decode(DecodeRequest(pictures=pictures)))
        for images, problem in (
            ([], r"images: has 0 pictures; must have 1 to 16"),
            ([file(4, 4)] * 17, r"images: has 17 pictures"),
            ([file(4, 4), b"GIF89a"], r"images\[1\]: must be a picture in PNG, JPEG or WebP format"),
            ([file(4, 4, "GIF")], r"images\[0\]: must be a picture in PNG, JPEG or WebP format"),
            ([file(64, 64)[:-30]], r"images\[0\]: cannot be read"),
            ([file(4097, 1)], r"images\[0\]: has 4097 x 1 pixels; at most 4096 x 4096 are allowed"),
            ([file(4, 4) + b"PK\3\4"], r"images\[0\]: has data after the end of the picture"),
            ([file(5, 5, "WEBP") + b"<html>"], r"images\[0\]: has data after the end of the picture"),
            ([bytes(MAX_FILE_BYTES + 1)], rf"images\[0\]: has {MAX_FILE_BYTES + 1} bytes"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.EncodeImages(EncodeImagesRequest(images=images)))
        other = ModelReference(name="mega")
        with pytest.raises(ModelNotFoundError):
            await answer(stub.Decode(DecodeRequest(pictures=[PICTURE], model=other)))
        with pytest.raises(ModelNotFoundError):
            await answer(stub.EncodeImages(EncodeImagesRequest(images=[file(4, 4)], model=other)))


@asynchronous
async def test_models_that_share_the_vqgan_are_decoded_by_its_key(
    servicer: DecoderServicer, tiny: ModelFolder
) -> None:
    other, key = ModelReference(name="mega", revision="sha256:0"), route_keys(tiny)[Stage.DECODE]
    async with called(register(servicer)) as channel:
        stub = DecoderServiceStub(channel)
        for asked in (other, None):
            decoding = DecodeRequest(pictures=[PICTURE], model=asked, key=key)
            assert len(await answer(stub.Decode(decoding))) == 1
            encoding = EncodeImagesRequest(images=[file(4, 4)], model=asked, key=key)
            assert len((await answer(stub.EncodeImages(encoding))).pictures) == 1
        # The key decides, whatever the model is.
        with pytest.raises(ModelNotFoundError, match="with the key 000000000000 are not loaded"):
            await answer(stub.Decode(DecodeRequest(pictures=[PICTURE], key="0" * 12)))


@asynchronous
async def test_image_is_cropped_to_its_centre_and_encoded(
    servicer: DecoderServicer, pipeline: Pipeline
) -> None:
    async with called(register(servicer)) as channel:
        request = EncodeImagesRequest(images=[file(32, 32), file(96, 32), file(320, 320, "WEBP")])
        pictures = (await answer(DecoderServiceStub(channel).EncodeImages(request))).pictures
    middles = [square(read_image(content, "image"), 32) for content in request.images]
    expected = pipeline.decoder.encode(np.stack([np.asarray(middle) for middle in middles]))
    assert [list(picture.tokens) for picture in pictures] == expected.tolist()


@asynchronous
async def test_model_without_an_image_encoder_only_decodes(
    tiny: ModelFolder, pipeline: Pipeline, compute: ComputeThread
) -> None:
    vqgan = pipeline.decoder.vqgan
    half = replace(vqgan, params={name: part for name, part in vqgan.params.items() if name != "encoder"})
    model = model_reference(tiny.name, tiny.revision)
    servicer = DecoderServicer(
        engine=DecoderEngine(half), compute=compute, spec=ModelSpec.load(tiny), model=model
    )
    async with called(register(servicer)) as channel:
        stub = DecoderServiceStub(channel)
        assert len(await answer(stub.Decode(DecodeRequest(pictures=[PICTURE])))) == 1
        with pytest.raises(NotSupportedError):
            await answer(stub.EncodeImages(EncodeImagesRequest(images=[file(32, 32)])))


@asynchronous
async def test_call_above_the_limit_gets_a_retry_delay(
    servicer: DecoderServicer, compute: ComputeThread
) -> None:
    go_on = threading.Event()
    compute.submit(go_on.wait)
    async with called(register(servicer)) as channel:
        stub = DecoderServiceStub(channel)
        request = DecodeRequest(pictures=[PICTURE])
        with compute.permit():
            waiting = stub.Decode(request)
            while not compute.waiting:
                await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError) as caught:
                await answer(stub.Decode(request))
            assert caught.value.retry_after >= 1
            go_on.set()
            assert len(await answer(waiting)) == 1


def test_transparency_becomes_white() -> None:
    image = read_image(file(4, 4, "PNG", "RGBA"), "image")
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (0, 0, 255)
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    turned = Image.new("RGB", (4, 2), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6  # Rotated by 90 degrees.
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    assert read_image(buffer.getvalue(), "image").size == (2, 4)


def test_what_cameras_append_to_a_jpeg_is_ignored() -> None:
    content = file(8, 8, "JPEG")
    assert (
        read_image(content + file(4, 4, "JPEG"), "image").tobytes() == read_image(content, "image").tobytes()
    )


def test_square_crops_to_the_centre_and_keeps_the_right_size() -> None:
    image = read_image(file(8, 8), "image")
    assert square(image, 8).tobytes() == image.tobytes()
    wide = Image.new("RGB", (24, 8), "green")
    wide.paste(image, (8, 0))
    assert square(wide, 8).tobytes() == image.tobytes()
    assert plain_png_bytes(image) == plain_png_bytes(square(wide, 8))
