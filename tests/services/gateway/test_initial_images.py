"""Parts of pictures that are kept wherever they are: what a request asks for, what is sent, and what a job tells."""

import asyncio

import pytest
from PIL import Image

from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import (
    count_jobs,
    create_job,
    finished_job,
    image_tokens,
    initial_image,
    mask_file,
    served,
)
from harness.grpc_server import asynchronous
from smalti.errors import InvalidInputError
from smalti.parameters import FREE
from smalti.pictures import plain_png_bytes
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.v1 import job_pb2
from smalti.v1.tokens_pb2 import ImageTokens
from tests.services.gateway.test_watch import decoding


@asynchronous
async def test_tiles_under_a_mask_are_drawn_anew(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        earlier = await finished_job(stub, gateway)
        reference = {"job_id": earlier.id, "candidate": 6}
        for size in (32, 128):  # As the model draws it, and enlarged.
            hole = (size // 4, size // 4, size // 2, size)
            job = await create_job(stub, initial_image(mask=mask_file(size, hole), picture=reference))
            kept = [0 if tile in (5, 9, 13) else 6 for tile in range(16)]
            assert job.parameters.initial_image == job_pb2.InitialImage(
                redrawn_tiles=[5, 9, 13], tokens=ImageTokens(tokens=kept)
            )
            # The first row is kept whole, and is not counted.
            assert job.progress.rows == 8 * 3
            tasks = await asyncio.to_thread(gateway.send)
            assert tasks[-1].given == tuple(FREE if tile in (5, 9, 13) else 6 for tile in range(16))
        again = await create_job(stub, lambda asked: asked.parameters.CopyFrom(job.parameters))
        assert again.parameters == job.parameters
        assert (await asyncio.to_thread(gateway.send))[-1].given == tasks[-1].given


@asynchronous
async def test_variation_keeps_a_share(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway, initial_image(strength=0.25, tokens=image_tokens(16, 15)))
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED
        assert job.parameters.initial_image == job_pb2.InitialImage(
            strength=0.25, tokens=image_tokens(16, 15)
        )
        assert job.progress.rows == 8 * 4
        again = await create_job(stub, lambda asked: asked.parameters.CopyFrom(job.parameters))
        assert again.parameters == job.parameters
        (task,) = await asyncio.to_thread(gateway.send)
        assert (task.given, task.strength) == ((15,) * 16, 0.25)
        # The best picture is candidate 7, whose own token is 7.
        reference = {"job_id": job.id, "candidate": 7}
        varied = await create_job(stub, initial_image(redrawn_tiles=[0], picture=reference))
        assert sorted(varied.parameters.initial_image.tokens.tokens)[1:] == [7] * 4 + [15] * 11


@asynchronous
async def test_mask_of_a_file(make_gateway: MakeGateway, tiny: ModelFolder) -> None:
    gateway = make_gateway(decoder="unused:1")
    async with decoding(ModelSpec.load(tiny)) as decoder, served(gateway, decoder=decoder) as stub:
        image = plain_png_bytes(Image.new("RGB", (64, 64), "red"))
        job = await create_job(stub, initial_image(mask=mask_file(64), image=image))
        assert list(job.parameters.initial_image.redrawn_tiles) == [0]
        assert len(job.parameters.initial_image.tokens.tokens) == 16
        with pytest.raises(
            InvalidInputError, match="32 x 32 pixels; it must be as large as the picture: 64 x 64"
        ) as wrong:
            await create_job(stub, initial_image(mask=mask_file(32), image=image))
        assert wrong.value.field == "parameters.initial_image.mask"
        assert count_jobs(gateway) == 1
